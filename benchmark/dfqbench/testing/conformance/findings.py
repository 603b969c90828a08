"""The error that a check raises, and the result of a check."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dfqbench.api.errors import PluginError


class Fault(PluginError):  # noqa: N818 - the result of a check, as `Skip` is the result of a plugin
    """A method does not keep the contract.

    Args:
        message: the violation.
        hint: what to change.
    """


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of a check.

    Attributes:
        check: name of the check.
        title: the property.
        status: `ok`, `warning`, `failed` or `not run`.
        message: the violation or advice, and what to change; empty if all is well.
    """

    check: str
    title: str
    status: Literal["ok", "warning", "failed", "not run"]
    message: str = ""
