"""Exceptions: each says what is wrong, where, and what to do next.

Every error that a user can cause derives from :class:`DfqError`; the command line prints its message without a
traceback. Any other exception is a defect of dfqbench and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DfqError(Exception):
    """Base class of every error that dfqbench raises on purpose.

    Args:
        message: what is wrong and where, lower case, one line.
        hint: what to do next, or empty.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message, hint)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}; {self.hint}" if self.hint else self.message


class UsageError(DfqError):
    """The request is wrong (unknown name, bad option, broken grid file); exit status 2."""


class InputError(UsageError):
    """A file given by the user is wrong (data folder, manifest, checkpoint, weights); exit status 2."""


class PluginError(DfqError):
    """A plugin does not load or does not keep the contract; the run continues with the others."""


class Invalid(DfqError):  # noqa: N818 - a state of a cell
    """Plugin code did what makes a result wrong; the record is `invalid`."""


class Unavailable(DfqError):  # noqa: N818 - a state of a cell, not a fault
    """A cell cannot run here (weights missing, network not supported); a row of the table with this reason."""


class Skip(DfqError):  # noqa: N818 - raised by a plugin on purpose
    """A plugin declines a cell (a network without BatchNorm, say); a row of the table with this reason."""


class NonFiniteError(DfqError):
    """A loss or an image is NaN or infinite.

    Args:
        what: the quantity, for example ``zeroq loss``.
        step: the step at which it was first seen, or None.
    """

    def __init__(self, what: str, step: int | None = None) -> None:
        where = "" if step is None else f" at step {step}"
        super().__init__(f"{what} is not finite{where}", "lower the learning rate or run with another seed")
        self.step = step


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, shortened; the name of its type if the message is empty."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def unknown_name(what: str, name: str, valid: Iterable[str], *, error: type[DfqError] = UsageError) -> DfqError:
    """Return the error, to be raised, for an unknown name; it lists the valid names and suggests similar ones.

    Args:
        what: what the name is for (``method``, ``model``, ...).
        name: the name that was given.
        valid: every valid name.
        error: class of the error.
    """
    names = sorted(valid)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    guess = f"did you mean {' or '.join(near)}? " if near else ""
    return error(f"unknown {what} '{name}'", f"{guess}valid: {', '.join(names) or 'none'}")
