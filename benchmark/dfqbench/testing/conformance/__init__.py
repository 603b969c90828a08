"""Conformance: what every method must keep, as `dfqbench methods check NAME` and as a pytest class.

In a plugin's tests::

    from dfqbench.testing import conformance

    class TestMine(conformance.MethodChecks):
        method = "mine"
"""

from dfqbench.testing.conformance.check import Check, Fault, Finding
from dfqbench.testing.conformance.subject import DEFAULT_LIMIT, Subject
from dfqbench.testing.conformance.suite import CHECKS, ConformanceWarning, MethodChecks, examine, run_check

__all__ = [
    "CHECKS",
    "DEFAULT_LIMIT",
    "Check",
    "ConformanceWarning",
    "Fault",
    "Finding",
    "MethodChecks",
    "Subject",
    "examine",
    "run_check",
]
