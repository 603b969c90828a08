"""`dfqbench plot`: plots of a run or of all, as PNG and SVG."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dfqbench.cli.table import OutOption, RunArgument, names, read_runs
from dfqbench.run.store.run_folder import DEFAULT_OUT


def register(app: typer.Typer) -> None:
    """Adds the verb to the command line."""
    app.command("plot")(plot)


def plot(
    run: RunArgument = None,
    out: OutOption = DEFAULT_OUT,
    kinds: Annotated[
        str | None,
        typer.Option("--kind", metavar="NAMES", help="bits, time, phases, curves, homogeneity, layers; all of them."),
    ] = None,
    to: Annotated[
        Path | None, typer.Option("--to", metavar="DIR", help="Folder for the files; plots/ beside the runs.")
    ] = None,
) -> None:
    """Draw plots of a run, or of all runs.

    Accuracy against bits and time, time by phase, learning curves, and what `diagnose` has measured.
    """
    from dfqbench.cli.options import checked_out
    from dfqbench.report.plots.draw import KINDS, draw_plots, save_plots

    records, _ = read_runs(out, run)
    found = draw_plots(records, names(kinds) if kinds is not None else tuple(KINDS))
    folder = checked_out(to or out / (run or ".") / "plots")
    for file in save_plots(found, folder):
        typer.echo(str(file))
    if not found:
        typer.echo("the records hold nothing to draw (curves: `run --oracle N`; the rest: `diagnose`)", err=True)
