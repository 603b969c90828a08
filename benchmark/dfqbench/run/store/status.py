"""Statuses of records: what each means for the next run, for the table and for the exit status."""

from __future__ import annotations

from typing import Literal, get_args

Status = Literal["ok", "skipped", "unavailable", "failed", "oom", "timeout", "preempted", "invalid", "collapsed"]
"""How an attempt at a cell ended.

`ok`: measured. `collapsed`: measured, and the student guesses. `skipped`: the method declines the cell. `unavailable`:
something is missing here. `failed`: an error, or the worker died. `oom`: memory ran out. `timeout`: the time limit was
reached. `preempted`: somebody stopped the run. `invalid`: measured, but real data was opened or an operand is off its
grid.
"""
STATUSES: tuple[str, ...] = get_args(Status)

MEASURED = frozenset({"ok", "collapsed"})
"""The numbers count."""
FAULTY = frozenset({"failed", "oom", "timeout", "invalid"})
"""Run again on request only: a fault seldom goes away by itself."""
SETTLED = MEASURED | FAULTY
"""Not run again by themselves. The others are looked at anew: what was missing may be there now."""

RETRIES: dict[str, frozenset[str]] = {
    "failed": frozenset({"failed", "oom", "invalid"}),
    "timeout": frozenset({"timeout"}),
    "all": FAULTY,
}
"""What `--retry` takes up, by its argument."""


def retry_for(statuses: set[str]) -> str:
    """The argument of `--retry` that takes up just these statuses, or the least that takes up all of them."""
    return next((name for name, taken in RETRIES.items() if statuses <= taken), "all")
