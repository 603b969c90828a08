"""`dfqbench plan`: what a run would do, and how long it would take."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from dfqbench.cli.options import (
    BitsOption,
    BudgetOption,
    DataOption,
    DeviceOption,
    ExactOption,
    GridOption,
    LimitOption,
    MethodsOption,
    ModelsOption,
    OnOption,
    OutOption,
    PluginOption,
    Request,
    SeedsOption,
    SetOption,
    checked_device,
    planned,
)
from dfqbench.run.store.run_folder import DEFAULT_OUT

if TYPE_CHECKING:
    from dfqbench.plugins import Plugins
    from dfqbench.run.plan.cell import Cell
    from dfqbench.run.plan.estimate import Estimate, History


def plan(
    grid: GridOption = "w4a4",
    on: OnOption = None,
    models: ModelsOption = None,
    methods: MethodsOption = None,
    bits: BitsOption = None,
    seeds: SeedsOption = None,
    settings: SetOption = None,
    budget: BudgetOption = None,
    limit: LimitOption = None,
    data: DataOption = None,
    plugin: PluginOption = None,
    exact: ExactOption = False,
    device: DeviceOption = "auto",
    out: OutOption = DEFAULT_OUT,
    time_steps: Annotated[bool, typer.Option("--time", help="Time a few steps of cells never run before.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the cells of a grid and the time to expect.

    Cells that cannot run are listed with the reason. Nothing is run or written.
    """
    from dfqbench.run.plan.estimate import History
    from dfqbench.run.schedule.run import earlier_records

    device = checked_device(device)
    request = Request(
        grid=grid,
        on=on,
        models=models,
        methods=methods,
        bits=bits,
        seeds=seeds,
        settings=settings or [],
        budget=budget,
        limit=limit,
        data=data or [],
        plugins=plugin or [],
        exact=exact,
        device=device,
    )
    found, plugins = planned(request)
    history = History(earlier_records(out))
    runnable = [cell for cell in found.cells if cell.problem is None]
    estimate = _timed(runnable, history, plugins, device) if time_steps else history.estimate(runnable, device, {})
    if as_json:
        cells = [_plain(cell) for cell in found.cells]
        typer.echo(json.dumps({"notes": found.notes, "estimate": str(estimate), "cells": cells}, indent=1))
        return
    for note in found.notes:
        typer.echo(note)
    typer.echo(f"{len(found.cells)} cells on {device}; {estimate}")
    for cell in found.cells:
        reason = f"  ({cell.problem.status}: {cell.problem.message})" if cell.problem else ""
        typer.echo(f"  {cell.cell_id}  {cell.label}, budget {cell.budget.name}{reason}")
    for broken in plugins.broken:
        typer.echo(f"broken plugin {broken.origin}: {broken.message}", err=True)


def _timed(cells: list[Cell], history: History, plugins: Plugins, device: str) -> Estimate:
    """The estimate with a few steps timed in workers; what they write is removed."""
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


def register(app: typer.Typer) -> None:
    """Adds the verb."""
    app.command("plan")(plan)
