"""Conformance: what every plugin must keep, as `dfqbench methods check NAME` and as a pytest class.

In a plugin's tests::

    from dfqbench.testing import conformance

    class TestMine(conformance.PluginChecks):
        method = "mine"

    class TestMyQuantizer(conformance.PluginChecks):
        quantizer = "my-quantizer"

    class TestMyRange(conformance.PluginChecks):
        range_rule = "my-range"
"""

from dfqbench.testing.conformance.findings import Fault, Finding
from dfqbench.testing.conformance.method_under_test import MethodUnderTest
from dfqbench.testing.conformance.plugin_under_test import DEFAULT_LIMIT
from dfqbench.testing.conformance.quantizer_under_test import QuantizerUnderTest
from dfqbench.testing.conformance.range_rules import RangeRuleUnderTest
from dfqbench.testing.conformance.suite import (
    CHECKS,
    QUANTIZER_CHECKS,
    RANGE_RULE_CHECKS,
    Check,
    ConformanceWarning,
    PluginChecks,
    examine,
    run_check,
)

__all__ = [
    "CHECKS",
    "DEFAULT_LIMIT",
    "QUANTIZER_CHECKS",
    "RANGE_RULE_CHECKS",
    "Check",
    "ConformanceWarning",
    "Fault",
    "Finding",
    "MethodUnderTest",
    "PluginChecks",
    "QuantizerUnderTest",
    "RangeRuleUnderTest",
    "examine",
    "run_check",
]
