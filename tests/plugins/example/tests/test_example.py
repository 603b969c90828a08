"""Conformance of the example's method and quantizer, as any plugin's tests would ask for it."""

from __future__ import annotations

from dfqbench.testing import conformance


class TestStripes(conformance.PluginChecks):
    """One test a check."""

    method = "stripes"


class TestOneImage(conformance.PluginChecks):
    """The same for its quantizer."""

    quantizer = "one-image"
