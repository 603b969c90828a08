"""`dfqbench run`: runs a grid and ends with its table."""

from __future__ import annotations

from typing import Annotated

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
    checked_name,
    checked_out,
    planned,
)
from dfqbench.run.store import DEFAULT_OUT


def run(
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
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="Name of the run; the grid's by default.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Start even if it would take more than a day.")] = False,
    retry: Annotated[bool, typer.Option("--retry", help="Run failed and invalid cells again.")] = False,
    any_environment: Annotated[
        bool, typer.Option("--any-environment", help="Count cells finished with other versions or hardware.")
    ] = False,
) -> None:
    """Run a grid and print its table.

    Synthesizes images, quantizes, evaluates; cells that were finished before are not run again. The exit status is 1
    if a cell failed, if a plugin is broken, or if no cell could be run.
    """
    from rich.console import Console

    from dfqbench.run.session import Options, run_plan, write_tables

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
    options = Options(checked_out(out), checked_name(name), device, yes, retry, any_environment)
    found, plugins = planned(request)
    summary, folder = run_plan(found, plugins, options, Console(stderr=True))
    typer.echo(write_tables(folder, summary.records))
    typer.echo(f"records and tables: {folder.path}", err=True)
    for note in summary.notes:
        typer.echo(note, err=True)
    if summary.failed or plugins.broken:
        for record in summary.failed:
            message = (record.get("error") or {}).get("message")
            typer.echo(f"{record['status']}: {record['cell_id']} {record['label']}: {message}", err=True)
        if summary.failed:
            typer.echo(
                "look closer with `dfqbench show CELL`; run them again with the same command and --retry", err=True
            )
        raise typer.Exit(1)
    if not any(record["status"] == "ok" for record in summary.records):
        typer.echo("no cell could be run; the table says why", err=True)
        raise typer.Exit(1)


def register(app: typer.Typer) -> None:
    """Adds the verb."""
    app.command("run")(run)
