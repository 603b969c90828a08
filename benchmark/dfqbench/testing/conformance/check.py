"""What a check is, and how it says what to change."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from dfqbench.api.errors import PluginError

if TYPE_CHECKING:
    from dfqbench.testing.conformance.subject import Subject

Status = Literal["ok", "warning", "failed", "not run"]


class Fault(PluginError):  # noqa: N818 - what a check finds, as `Skip` is what a plugin says
    """A method does not keep the contract.

    Args:
        message: what was found.
        hint: what to change.
    """


@dataclass(frozen=True, slots=True)
class Check:
    """One property of a method.

    Attributes:
        name: short name, as in `test_conformance[name]`.
        title: the property, as a sentence.
        run: looks at a subject; raises `Fault` where the property does not hold, returns advice that is no fault.
        runs_code: whether it runs `synthesize` in this process, which is safe only once that is known to end.
    """

    name: str
    title: str
    run: Callable[[Subject], Iterable[str]]
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
