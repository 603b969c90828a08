"""`dfqbench watch`: the state of a run that works elsewhere."""

from __future__ import annotations

import shlex
import time
from typing import TYPE_CHECKING, Annotated

import typer

from dfqbench.cli import completion
from dfqbench.cli.completion import completing
from dfqbench.cli.options import OutOption
from dfqbench.cli.runs import started
from dfqbench.run.store.run_folder import DEFAULT_OUT

if TYPE_CHECKING:
    from dfqbench.run.cluster.overview import Overview, Watcher

REFRESH = 5.0
"""Seconds between two looks."""
OneRun = Annotated[
    str, typer.Argument(metavar="RUN", help="A run's name, or its folder.", autocompletion=completing(completion.runs))
]


def watch(
    run: OneRun,
    once: Annotated[bool, typer.Option("--once", help="Print the state now, and leave.")] = False,
    out: OutOption = DEFAULT_OUT,
) -> None:
    """Show how a run goes on.

    Prints cells done, under way and failed, and the time left. Works for a run in another terminal, on machines that
    share the results folder, and under SLURM. Ctrl-C leaves, and the run goes on. The command ends by itself once
    nothing works on the run any more, with exit status 1 if cells are left or have failed.
    """
    from dfqbench.run.cluster.overview import Watcher

    watcher = Watcher(started(out, run))
    try:
        overview = watcher.look() if once else _follow(watcher)
    except KeyboardInterrupt:
        typer.echo(f"left; the run goes on, and so does: dfqbench watch {shlex.quote(run)}", err=True)
        return
    typer.echo("\n".join(overview.lines()))
    if not once and (overview.failed or not overview.complete):
        raise typer.Exit(1)


def _follow(watcher: Watcher) -> Overview:
    """Show the state until nothing works on the run: on a terminal in place, else whenever a cell ends."""
    import sys

    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console(highlight=False)
    with Live(console=console, transient=True, auto_refresh=False) as live:
        done = -1
        while not (overview := watcher.look()).idle:
            if console.is_terminal:
                live.update(Text("\n".join(overview.lines())), refresh=True)
            elif overview.done != done:
                done = overview.done
                typer.echo(overview.lines()[0])
                sys.stdout.flush()
            time.sleep(REFRESH)
    return overview
