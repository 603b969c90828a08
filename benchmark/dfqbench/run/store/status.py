"""Statuses of records: what each means for the next run, for the table and for the exit status."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

Status = Literal["ok", "skipped", "unavailable", "failed", "oom", "timeout", "preempted", "invalid", "collapsed"]
"""How an attempt at a cell ended.

`ok`: measured. `collapsed`: measured, and the student guesses. `skipped`: the method declines the cell. `unavailable`:
a network or its data is missing. `failed`: an error, or the worker died. `oom`: memory ran out. `timeout`: the time
limit was reached. `preempted`: the run was stopped. `invalid`: plugin code opened real data, changed the teacher or
quantized under another scheme, or an operand is off its quantization levels.
"""
STATUSES: tuple[str, ...] = get_args(Status)

MEASURED = frozenset({"ok", "collapsed"})
"""The numbers count."""
FAULTY = frozenset({"failed", "oom", "timeout", "invalid"})
"""Run again on request only."""
SETTLED = MEASURED | FAULTY
"""Not run again without request. Cells of other statuses are tried in every run."""

RETRIES: dict[str, frozenset[str]] = {
    "failed": frozenset({"failed", "oom", "invalid"}),
    "timeout": frozenset({"timeout"}),
    "all": FAULTY,
}
"""Statuses that `--retry` runs again, by its argument."""

GPU_SHARED, CPU_SHARED = "gpu_shared", "cpu_shared"
SHARED: Mapping[str, str] = {
    GPU_SHARED: "other jobs computed on the same GPU",
    CPU_SHARED: "other jobs computed on the same CPU",
}
"""Flags of records whose wall times are longer than alone, with the reason."""


def described_flag(flag: str) -> str:
    """Return a record's flag, with its reason where `SHARED` has one."""
    return f"{flag} ({SHARED[flag]})" if flag in SHARED else flag


def retry_for(statuses: set[str]) -> str:
    """Return the smallest argument of `--retry` that runs all these statuses again."""
    return next((name for name, covered in RETRIES.items() if statuses <= covered), "all")
