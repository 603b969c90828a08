"""`dfqbench table`: the records of one run or of all, as a table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, cast

import typer

from dfqbench.run.store import DEFAULT_OUT

OutOption = Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder that holds the runs.")]


def register(app: typer.Typer) -> None:
    """Adds the verb to the command line."""
    app.command("table")(table)


def table(
    run: Annotated[str | None, typer.Argument(metavar="RUN", help="A run's name; without it, all runs.")] = None,
    out: OutOption = DEFAULT_OUT,
    fmt: Annotated[str, typer.Option("--format", metavar="text|md|csv|json", help="What to print.")] = "text",
) -> None:
    """Print the table of a run, or of all runs.

    Methods × models, with accuracy, drop and synthesis time.
    """
    from dfqbench.api.errors import unknown_name
    from dfqbench.report import FORMATS, Format, hardware, render
    from dfqbench.run.store import read_records, run_folders

    if fmt not in FORMATS:
        raise unknown_name("format", fmt, FORMATS)
    folders = {folder.name: folder.path for folder in run_folders(out)}
    if run is not None and run not in folders:
        raise unknown_name("run", run, folders)
    records: list[dict[str, Any]] = []
    machines: dict[str, str] = {}
    for name, folder in folders.items():
        if run not in {None, name}:
            continue
        found, warnings = read_records(folder)
        records += found
        machines |= hardware(folder)
        for warning in warnings:
            typer.echo(f"dfqbench: warning: {warning}", err=True)
    typer.echo(render(records, cast("Format", fmt), machines), nl=False)
