"""`dfqbench plot`: plots of a run or of all, as PNG and SVG."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dfqbench.cli.layout import stderr_console
from dfqbench.cli.options import OutOption, RunArgument, checked_out, split_names, usable_path
from dfqbench.cli.runs import read_attempts, select
from dfqbench.run.store.run_folder import DEFAULT_OUT


def plot(
    run: RunArgument = None,
    out: OutOption = DEFAULT_OUT,
    kinds: Annotated[
        str | None,
        typer.Option("--kind", metavar="NAMES", help="bits, time, phases, curves, homogeneity, layers; all of them."),
    ] = None,
    to: Annotated[
        Path | None,
        typer.Option(parser=usable_path, metavar="DIR", help="Folder; by default plots/ beside the runs."),
    ] = None,
) -> None:
    """Draw plots of a run, or of all runs.

    Accuracy against bits and time, time by phase, learning curves, and what `diagnose` has measured.
    """
    from dfqbench.report.plots.draw import KINDS, draw_plots, save_plots

    runs = select(out, run)
    attempts, _ = read_attempts(runs)
    with stderr_console().status("drawing"):
        plots = draw_plots([record for record, _ in attempts], tuple(KINDS) if kinds is None else split_names(kinds))
    folder = checked_out(to or runs.place / "plots")
    for file in save_plots(plots, folder):
        typer.echo(str(file))
    if not plots:
        typer.echo("the records hold nothing to draw (curves: `run --oracle N`; the rest: `diagnose`)", err=True)
