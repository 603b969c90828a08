"""All checks in order, and the two ways to run them: one call, or a pytest class."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from dfqbench.api.errors import PluginError
from dfqbench.testing.conformance import confinement, images, offer, resume, students
from dfqbench.testing.conformance.check import Check, Finding
from dfqbench.testing.conformance.subject import DEFAULT_LIMIT, Subject

if TYPE_CHECKING:
    from dfqbench.plugins import Plugins

CHECKS: tuple[Check, ...] = (
    Check("contract", "the import string names a class that keeps the contract", offer.contract, runs_code=False),
    Check("light", "listing the method imports no torch", offer.light, runs_code=False),
    Check("parameters", "parameters survive JSON and say what they mean", offer.parameters, runs_code=False),
    Check("ends", "a run on a toy network comes to its end", confinement.ends, runs_code=False),
    Check("confined", "no file outside the work folder, no data, no network", confinement.confined, runs_code=False),
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
    subject = Subject(plugins, name, limit)
    failed: set[str] = set()
    for check in checks:
        blocking = next((first for first in _FIRST if first in failed), None)
        if blocking is not None and check.name != "light" and (check.runs_code or blocking == "contract"):
            yield Finding(check.name, check.title, "not run", f"repair '{blocking}' first")
            continue
        finding = run_check(check, subject)
        if finding.status == "failed":
            failed.add(check.name)
        yield finding


def run_check(check: Check, subject: Subject) -> Finding:
    """Runs one check; what it raises is what it found."""
    try:
        advice = list(check.run(subject))
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
    _subjects: ClassVar[dict[type[MethodChecks], Subject]] = {}

    @classmethod
    def subject(cls) -> Subject:
        """The method under examination; made once for the class."""
        from dfqbench.plugins import load_plugins

        if cls not in cls._subjects:
            cls._subjects[cls] = Subject(load_plugins([Path(f) for f in cls.plugin_files]), cls.method, cls.limit)
        return cls._subjects[cls]

    def pytest_generate_tests(self, metafunc: Any) -> None:
        """One test a check."""
        if "check" in metafunc.fixturenames:
            metafunc.parametrize("check", CHECKS, ids=[check.name for check in CHECKS])

    def test_conformance(self, check: Check) -> None:
        """Runs one check."""
        import pytest

        try:
            subject = self.subject()
            if check.runs_code:
                list(confinement.ends(subject))
            finding = run_check(check, subject)
        except PluginError as error:
            pytest.fail(str(error), pytrace=False)
        if finding.status == "failed":
            pytest.fail(f"{finding.title}: {finding.message}", pytrace=False)
        if finding.status == "warning":
            warnings.warn(f"{self.method}: {finding.message}", ConformanceWarning, stacklevel=2)
