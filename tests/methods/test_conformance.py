"""The built-in methods pass the checks of third-party methods, without a warning."""

from __future__ import annotations

from dfqbench.plugins import load_plugins
from dfqbench.testing import conformance

METHODS = [name for name, offer in load_plugins().methods.items() if offer.origin == "dfqbench" and name != "none"]
"""All but the source without images, which has none to check."""

for name in METHODS:
    globals()[f"Test{name.title()}"] = type(f"Test{name.title()}", (conformance.PluginChecks,), {"method": name})


def test_all_methods_are_checked() -> None:
    assert len(METHODS) == 9
