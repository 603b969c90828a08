"""All checks in order, and the two ways to run them: one call, or a pytest class."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from dfqbench.api.errors import PluginError
from dfqbench.testing.conformance import images, process, registration, resume, students
from dfqbench.testing.conformance.check import Check, Finding
from dfqbench.testing.conformance.method_under_test import DEFAULT_LIMIT, MethodUnderTest

if TYPE_CHECKING:
    from dfqbench.plugins import Plugins

CHECKS: tuple[Check, ...] = (
    Check(
        "contract", "the import string names a class that keeps the contract", registration.contract, runs_code=False
    ),
    Check("light", "listing the method imports no torch", registration.light, runs_code=False),
    Check("parameters", "parameters survive JSON and say what they mean", registration.parameters, runs_code=False),
    Check("ends", "a run on a toy network comes to its end", process.ends, runs_code=False),
    Check("confined", "no file outside the work folder, no data, no network", process.confined, runs_code=False),
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
"""Every check, cheap ones first; those before `images` decide whether the others may run in this process."""

_FIRST = ("contract", "ends")
"""Checks without which those that run plugin code in this process are not run."""


class ConformanceWarning(UserWarning):
    """Advice of a check that is no fault."""


def examine(
    plugins: Plugins, name: str, *, limit: float = DEFAULT_LIMIT, checks: Sequence[Check] = CHECKS
) -> Iterator[Finding]:
    """Runs checks on a method, one by one.

    Args:
        plugins: what was loaded.
        name: the method's name.
        limit: seconds that a run on a toy network may take.
        checks: which.

    Yields:
        What each found, as soon as it is known.

    Raises:
        UsageError: no plugin offers the name.
        PluginError: its plugin did not load.
    """
    method = MethodUnderTest(plugins, name, limit)
    failed: set[str] = set()
    for check in checks:
        blocking = next((first for first in _FIRST if first in failed), None)
        if blocking is not None and check.name != "light" and (check.runs_code or blocking == "contract"):
            yield Finding(check.name, check.title, "not run", f"repair '{blocking}' first")
            continue
        finding = run_check(check, method)
        if finding.status == "failed":
            failed.add(check.name)
        yield finding


def run_check(check: Check, method: MethodUnderTest) -> Finding:
    """Runs one check; what it raises is what it found."""
    try:
        advice = list(check.run(method))
    except PluginError as error:
        return Finding(check.name, check.title, "failed", str(error))
    return Finding(check.name, check.title, "warning" if advice else "ok", "; ".join(advice))


class MethodChecks:
    """The checks as tests.

    Derive in a test file, and pytest runs one test a check::

        from dfqbench.testing import conformance

        class TestMine(conformance.MethodChecks):
            method = "mine"

    Attributes:
        method: the method's name.
        plugin_files: local plugin files that offer it, where it is not installed.
        limit: seconds that a run on a toy network may take.
    """

    method: ClassVar[str] = ""
    plugin_files: ClassVar[Sequence[Path | str]] = ()
    limit: ClassVar[float] = DEFAULT_LIMIT
    _cache: ClassVar[dict[type[MethodChecks], MethodUnderTest]] = {}

    @classmethod
    def method_under_test(cls) -> MethodUnderTest:
        """The method under test; made once for the class."""
        from dfqbench.plugins import load_plugins

        if cls not in cls._cache:
            cls._cache[cls] = MethodUnderTest(load_plugins([Path(f) for f in cls.plugin_files]), cls.method, cls.limit)
        return cls._cache[cls]

    def pytest_generate_tests(self, metafunc: Any) -> None:
        """One test a check."""
        if "check" in metafunc.fixturenames:
            metafunc.parametrize("check", CHECKS, ids=[check.name for check in CHECKS])

    def test_conformance(self, check: Check) -> None:
        """Runs one check."""
        import pytest

        try:
            tested = self.method_under_test()
            if check.runs_code:
                list(process.ends(tested))
            finding = run_check(check, tested)
        except PluginError as error:
            pytest.fail(str(error), pytrace=False)
        if finding.status == "failed":
            pytest.fail(f"{finding.title}: {finding.message}", pytrace=False)
        if finding.status == "warning":
            warnings.warn(f"{self.method}: {finding.message}", ConformanceWarning, stacklevel=2)
