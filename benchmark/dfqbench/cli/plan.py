"""`dfqbench plan`: the cells of a run, and the time to expect."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from dfqbench.cli.options import GridRequest, JsonOption, checked_device, expand_dataclasses, planned

if TYPE_CHECKING:
    from dfqbench.plugins import Plugins
    from dfqbench.run.plan.cell import Cell
    from dfqbench.run.plan.estimate import Estimate, History


@expand_dataclasses
def plan(
    request: GridRequest,
    time_steps: Annotated[bool, typer.Option("--time", help="Time a few steps of cells never run before.")] = False,
    as_json: JsonOption = False,
) -> None:
    """List the cells of a grid and the time to expect.

    Cells that cannot run are listed with the reason, and data, weights and methods that are missing. Nothing is run or
    written.
    """
    from dfqbench.run.plan.estimate import History
    from dfqbench.run.schedule.run import earlier_records

    device = checked_device(request.device)
    grid_plan, plugins = planned(request, device, list_missing=True)
    history = History(earlier_records(request.out))
    runnable = [cell for cell in grid_plan.cells if cell.problem is None]
    estimate = _timed(runnable, history, plugins, device) if time_steps else history.estimate(runnable, device, {})
    if as_json:
        cells = [_plain(cell) for cell in grid_plan.cells]
        typer.echo(json.dumps({"notes": grid_plan.notes, "estimate": str(estimate), "cells": cells}, indent=1))
        return
    typer.echo(f"{grid_plan.contents}; {len(grid_plan.cells)} cells on {device}; {estimate}")
    for cell in grid_plan.cells:
        reason = f"  ({cell.problem.status}: {cell.problem.message})" if cell.problem else ""
        typer.echo(f"  {cell.cell_id}  {cell.label}, budget {cell.budget.name}{reason}")
    for note in (*grid_plan.shortened, *grid_plan.notes):
        typer.echo(note)
    for broken in plugins.broken:
        typer.echo(f"broken plugin {broken.origin}: {broken.message}", err=True)


def _timed(cells: list[Cell], history: History, plugins: Plugins, device: str) -> Estimate:
    """Return the estimate with a few steps timed in workers, whose files are removed."""
    import tempfile
    from pathlib import Path

    from dfqbench.run.execute.executors import LocalExecutor
    from dfqbench.run.execute.job import Slot
    from dfqbench.run.schedule.run import timed_estimate
    from dfqbench.run.schedule.run_environment import RunEnvironment
    from dfqbench.run.store.run_folder import RunFolder

    with tempfile.TemporaryDirectory(prefix="dfqbench-plan-") as scratch:
        folder = RunFolder(Path(scratch))
        executor = LocalExecutor([Slot(0)], folder.path, cells[0].threads if cells else 1, device)
        env = RunEnvironment(folder, plugins, device)
        return timed_estimate(cells, history, env, executor, lambda text: typer.echo(text, err=True))


def _plain(cell: Cell) -> dict[str, object]:
    return {
        "cell_id": cell.cell_id,
        "student_id": cell.student_id,
        "source_id": cell.source_id,
        "label": cell.choice.label,
        "target": cell.dataset.name,
        "model": cell.model_name,
        "scheme": cell.scheme.label,
        "seed": cell.seed,
        "budget": cell.budget.name,
        "precision": cell.precision,
        "params": {"method": cell.method.params, "quantizer": cell.quantizer.params},
        "problem": None if cell.problem is None else {"status": cell.problem.status, "reason": cell.problem.message},
    }
