"""Probes: a few timed steps of a cell, for the estimate of a cell that was never run."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dfqbench.run.processes import LocalExecutor

if TYPE_CHECKING:
    from dfqbench.run.cell import Cell
    from dfqbench.run.runner import Runner
    from dfqbench.run.store import RunFolder

TIMED_SECONDS = 2.0
"""Steps are timed for so long in each phase."""


def probe_seconds(runner: Runner, folder: RunFolder, cell: Cell) -> dict[str, float] | None:
    """Times a few steps of a cell in a worker and extrapolates.

    Args:
        runner: knows how to make the job.
        folder: of the run; a folder in it is used and removed.
        cell: a cell that can run.

    Returns:
        Expected seconds of the cell without evaluation (`wall`, `synthesis`, `paid_synthesis`);
        None where it failed (the run will say why).
    """
    attempt = folder.path / "probe"
    shutil.rmtree(attempt, ignore_errors=True)
    attempt.mkdir(parents=True)
    begin = time.monotonic()
    rest: dict[str, float] = {}

    def listen(event: Mapping[str, Any]) -> None:
        if event.get("event") == "probe":
            rest[str(event["phase"])] = max(0.0, float(event["seconds"]) - TIMED_SECONDS)

    try:
        outcome = LocalExecutor().run(runner.job(cell, attempt, begin, TIMED_SECONDS), listen)
    finally:
        shutil.rmtree(attempt, ignore_errors=True)
    if outcome.status != "ok" and not rest:
        return None
    wall = time.monotonic() - begin + sum(rest.values())
    synthesis = rest.get("synthesis", 0.0)
    return {"wall": wall, "synthesis": synthesis, "paid_synthesis": synthesis}
