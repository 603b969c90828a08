"""Probes: a few timed steps of a cell, for the estimate of a cell that was never run."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dfqbench.plugins.registry import REAL
from dfqbench.run.execute.cancellation import Stop
from dfqbench.run.execute.events import Event, Phase, Probed
from dfqbench.run.plan.estimate import Estimate, History, cost_key

if TYPE_CHECKING:
    from dfqbench.run.execute.executor import Executor
    from dfqbench.run.plan.cell import Cell
    from dfqbench.run.schedule.runner import Runner

TIMED_SECONDS = 2.0
"""Steps are timed for so long in each phase."""


QUICK_BUDGETS = frozenset({"smoke"})
"""Budgets that are short everywhere: no steps are timed for an estimate."""
QUICK_TARGET = "digits"
"""The embedded target is small enough to start at once."""


def timed_estimate(
    cells: Iterable[Cell], history: History, runner: Runner, executor: Executor, say: Callable[[str], None]
) -> Estimate:
    """Expected time of cells: from earlier records, and for long cells without any from a few timed steps.

    Args:
        cells: cells that are not finished; those that cannot run are left out.
        history: earlier records.
        runner: knows how to make a job, and the device.
        executor: carries jobs out.
        say: is told before steps are timed, since that takes a while.
    """
    runnable = [cell for cell in cells if cell.problem is None]
    unknown: dict[tuple[Any, ...], Cell] = {}
    for cell in runnable:
        quick = cell.dataset.name == QUICK_TARGET or cell.budget.name in QUICK_BUDGETS or cell.method.name == REAL
        if not quick and history.seconds(cell, runner.device) is None:
            unknown.setdefault(cost_key(cell, runner.device), cell)
    if unknown:
        say(f"timing a few steps of {len(unknown)} kinds of cells, for the estimate")
    probed = {key: seconds for key, cell in unknown.items() if (seconds := probe_seconds(runner, executor, cell))}
    return history.estimate(runnable, runner.device, probed, runner.paid_sources(runnable))


def probe_seconds(runner: Runner, executor: Executor, cell: Cell) -> dict[str, float] | None:
    """Times a few steps of a cell in a worker and extrapolates.

    Args:
        runner: knows how to make the job.
        executor: carries it out.
        cell: a cell that can run.

    Returns:
        Expected seconds of the cell without evaluation (`wall`, `synthesis`, `paid_synthesis`);
        None where it failed (the run will say why).
    """
    rest: dict[Phase, float] = {}

    def on_event(event: Event) -> None:
        if isinstance(event, Probed):
            rest[event.phase] = max(0.0, event.seconds - TIMED_SECONDS)

    with tempfile.TemporaryDirectory(prefix=".probe-", dir=runner.folder.path) as attempt:
        begin = time.monotonic()
        job = runner.job([(cell, Path(attempt))], begin, TIMED_SECONDS)
        outcome = executor.run(job, executor.slots[0], on_event, Stop())
    if outcome.status != "ok" and not rest:
        return None
    wall = time.monotonic() - begin + sum(rest.values())
    synthesis = rest.get(Phase.SYNTHESIS, 0.0)
    return {"wall": wall, "synthesis": synthesis, "paid_synthesis": synthesis}
