"""A check, and its result."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from dfqbench.testing.conformance.method_under_test import MethodUnderTest

Status = Literal["ok", "warning", "failed", "not run"]


@dataclass(frozen=True, slots=True)
class Check:
    """One property of a method.

    Attributes:
        name: short name, as in `test_conformance[name]`.
        title: the property, as a sentence.
        run: examines a method; raises `Fault` where the property does not hold, returns advice that is no fault.
        runs_code: whether it runs `synthesize` in this process, which is safe only once that is known to end.
    """

    name: str
    title: str
    run: Callable[[MethodUnderTest], Iterable[str]]
    runs_code: bool = True


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found.

    Attributes:
        check: name of the check.
        title: the property.
        status: `ok`, `warning`, `failed` or `not run`.
        message: what was found and what to change; empty if all is well.
    """

    check: str
    title: str
    status: Status
    message: str = ""
