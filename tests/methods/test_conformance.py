"""The built-in methods pass the checks that a stranger's must pass, without a warning."""

from __future__ import annotations

from dfqbench.plugins import load_plugins
from dfqbench.testing import conformance


class TestZeroQ(conformance.MethodChecks):
    method = "zeroq"


class TestGdfq(conformance.MethodChecks):
    method = "gdfq"


class TestClusterQ(conformance.MethodChecks):
    method = "clusterq"


class TestAcq(conformance.MethodChecks):
    method = "acq"


class TestDffg(conformance.MethodChecks):
    method = "dffg"


class TestTemporal(conformance.MethodChecks):
    method = "temporal"


class TestNoise(conformance.MethodChecks):
    method = "noise"


def test_all_built_in_methods_are_checked() -> None:
    examined = {kind.method for kind in conformance.MethodChecks.__subclasses__() if kind.__module__ == __name__}
    assert examined == {name for name, offer in load_plugins().methods.items() if offer.origin == "dfqbench"}
