"""All checks in order, and the two ways to run them: one call, or a pytest class."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from dfqbench.api.errors import PluginError, unknown_name
from dfqbench.testing.conformance import images, quantizers, range_rules, registration, resume, students
from dfqbench.testing.conformance.findings import Finding
from dfqbench.testing.conformance.method_under_test import MethodUnderTest
from dfqbench.testing.conformance.plugin_under_test import DEFAULT_LIMIT, PluginUnderTest
from dfqbench.testing.conformance.quantizer_under_test import QuantizerUnderTest
from dfqbench.testing.conformance.range_rules import RangeRuleUnderTest

if TYPE_CHECKING:
    from dfqbench.plugins import Plugins


@dataclass(frozen=True, slots=True)
class Check:
    """One property of a method or quantizer.

    Attributes:
        name: short name, as in `test_conformance[name]`.
        title: the property, as a sentence.
        run: examine a plugin; raise `Fault` where the property does not hold, return advice.
        runs_code: whether it runs the plugin in this process, which is safe only once that is known to end.
    """

    name: str
    title: str
    run: Callable[[Any], Iterable[str] | None]
    runs_code: bool = True


_BEFORE: tuple[Check, ...] = (
    Check("contract", "the import string names a class that keeps the contract", registration.contract, False),
    Check("light", "listing it imports no torch", registration.light, False),
    Check("parameters", "parameters survive JSON and say what they mean", registration.parameters, False),
    Check("ends", "a run on a toy network comes to its end", registration.ends, False),
    Check("confined", "no file outside the work folder, no data, no network", registration.confined, False),
)
CHECKS: tuple[Check, ...] = (
    *_BEFORE,
    Check("images", "images have the card's shape, are finite, without a graph", images.images),
    Check("teacher", "the teacher stays as it was", images.teacher),
    Check("seeds", "same seed, same bits; another seed, other images", images.seeds),
    Check("rng", "the caller's random numbers and settings stay as they were", images.rng),
    Check("resume", "stopped and resumed equals straight", resume.resume),
    Check("state", "a source's state survives a weights_only load", resume.state),
    Check("quantizers", "every built-in quantizer takes the source", students.quantizers),
    Check("levels", "weights and activations take at most 2^bits values", students.levels),
    Check("requires", "`requires`, `depends_on_bits` and `needs_student` tell the truth", students.requires),
    Check("noise", "not worse than noise on the toy task", students.noise),
)
"""Every check of methods, cheap ones first."""
QUANTIZER_CHECKS: tuple[Check, ...] = (
    *_BEFORE,
    Check("students", "a finite student of every source under every protocol", students.quantizers),
    Check("levels", "weights and activations take at most 2^bits values", students.levels),
    Check("teacher", "the teacher stays as it was", quantizers.teacher),
    Check("seeds", "same seed, same bits", quantizers.seeds),
    Check("rng", "the caller's random numbers and settings stay as they were", quantizers.rng),
    Check("resume", "stopped and resumed equals straight", quantizers.resume),
    Check("many", "students of one loop equal students made alone", quantizers.many),
    Check("live", "a live source is trained before images are drawn", quantizers.live),
)
"""Every check of quantizers."""
RANGE_RULE_CHECKS: tuple[Check, ...] = (
    Check("contract", "the import string names an observer", range_rules.contract, False),
    Check("ranges", "ranges are finite and in order, and the batch stays as it was", range_rules.ranges, False),
    Check("state", "saved and resumed equals straight", range_rules.state, False),
    Check("students", "a finite student under every protocol", students.quantizers, False),
    Check("levels", "activations take at most 2^bits values", students.levels, False),
)
"""Every check of range rules, which need no process of their own: an observer gets numbers only."""


class ConformanceWarning(UserWarning):
    """Advice of a check that is no fault."""


def examine(plugins: Plugins, name: str, *, limit: float = DEFAULT_LIMIT) -> Iterator[Finding]:
    """Run all checks on a method, quantizer or range rule, one by one.

    Args:
        plugins: the loaded plugins.
        name: the name of the method, or of a quantizer where no method has it, or else of a range rule.
        limit: seconds that a run on a toy network may take.

    Yields:
        The result of each, as soon as it is known.

    Raises:
        UsageError: no plugin offers the name.
        PluginError: its plugin did not load.
    """
    plugin: PluginUnderTest | RangeRuleUnderTest
    if name in {*plugins.methods, *plugins.broken_names}:
        plugin, checks = MethodUnderTest(plugins, name, limit), CHECKS
    elif name in plugins.quantizers:
        plugin, checks = QuantizerUnderTest(plugins, name, limit), QUANTIZER_CHECKS
    elif name in plugins.range_rules:
        plugin, checks = RangeRuleUnderTest(plugins, name), RANGE_RULE_CHECKS
    else:
        known = {*plugins.methods, *plugins.quantizers, *plugins.range_rules}
        raise unknown_name("method, quantizer or range rule", name, known)
    failed: set[str] = set()
    for check in checks:
        # After these two, code that cannot be loaded or does not end must not run in this process.
        blocking = next((first for first in ("contract", "ends") if first in failed), None)
        if blocking is not None and check.name != "light" and (check.runs_code or blocking == "contract"):
            yield Finding(check.name, check.title, "not run", f"repair '{blocking}' first")
            continue
        finding = run_check(check, plugin)
        if finding.status == "failed":
            failed.add(check.name)
        yield finding


def run_check(check: Check, plugin: PluginUnderTest | RangeRuleUnderTest) -> Finding:
    """Run one check and return its result."""
    try:
        advice = list(check.run(plugin) or ())
    except PluginError as error:
        return Finding(check.name, check.title, "failed", str(error))
    return Finding(check.name, check.title, "warning" if advice else "ok", "; ".join(advice))


class PluginChecks:
    """The checks as tests: derive a class in a test file, name what it tests, and pytest runs a test for each check.

    Attributes:
        method: name of a method.
        quantizer: name of a quantizer, in place of a method.
        range_rule: name of a range rule, in place of both.
        plugin_files: local plugin files that offer it, where it is not installed.
        limit: seconds that a run of a method or quantizer on a toy network may take.
    """

    method: ClassVar[str] = ""
    quantizer: ClassVar[str] = ""
    range_rule: ClassVar[str] = ""
    plugin_files: ClassVar[Sequence[Path | str]] = ()
    limit: ClassVar[float] = DEFAULT_LIMIT
    _cache: ClassVar[dict[type[PluginChecks], PluginUnderTest | RangeRuleUnderTest]] = {}

    @classmethod
    def plugin_under_test(cls) -> PluginUnderTest | RangeRuleUnderTest:
        """Return the plugin under test, the same for all tests of the class."""
        from dfqbench.plugins import load_plugins

        if cls not in cls._cache:
            plugins = load_plugins([Path(file) for file in cls.plugin_files])
            if cls.method:
                cls._cache[cls] = MethodUnderTest(plugins, cls.method, cls.limit)
            elif cls.quantizer:
                cls._cache[cls] = QuantizerUnderTest(plugins, cls.quantizer, cls.limit)
            else:
                cls._cache[cls] = RangeRuleUnderTest(plugins, cls.range_rule)
        return cls._cache[cls]

    def pytest_generate_tests(self, metafunc: Any) -> None:
        """Make one test for each check."""
        if "check" in metafunc.fixturenames:
            checks = CHECKS if self.method else QUANTIZER_CHECKS if self.quantizer else RANGE_RULE_CHECKS
            metafunc.parametrize("check", checks, ids=[check.name for check in checks])

    def test_conformance(self, check: Check) -> None:
        """Run one check."""
        import pytest

        try:
            tested = self.plugin_under_test()
            if check.runs_code and isinstance(tested, PluginUnderTest):
                registration.ends(tested)
        except PluginError as error:
            pytest.fail(str(error), pytrace=False)
        finding = run_check(check, tested)
        if finding.status == "failed":
            pytest.fail(f"{finding.title}: {finding.message}", pytrace=False)
        if finding.status == "warning":
            warnings.warn(f"{tested.name}: {finding.message}", ConformanceWarning, stacklevel=2)
