"""Conformance: what every method must keep, as `dfqbench methods check NAME` and as a pytest class.

In a plugin's tests::

    from dfqbench.testing import conformance

    class TestMine(conformance.MethodChecks):
        method = "mine"
"""

from dfqbench.testing.conformance.findings import Fault, Finding
from dfqbench.testing.conformance.method_under_test import DEFAULT_LIMIT, MethodUnderTest
from dfqbench.testing.conformance.suite import CHECKS, Check, ConformanceWarning, MethodChecks, examine, run_check

__all__ = [
    "CHECKS",
    "DEFAULT_LIMIT",
    "Check",
    "ConformanceWarning",
    "Fault",
    "Finding",
    "MethodChecks",
    "MethodUnderTest",
    "examine",
    "run_check",
]
