"""`dfqbench cancel`: cancel the SLURM jobs of a run."""

from __future__ import annotations

import typer

from dfqbench.api.errors import UsageError
from dfqbench.cli.options import OutOption
from dfqbench.cli.runs import started
from dfqbench.cli.watch import OneRun
from dfqbench.run.store.run_folder import DEFAULT_OUT


def cancel(run: OneRun, out: OutOption = DEFAULT_OUT) -> None:
    """Cancel the SLURM jobs of a run.

    Cells under way keep their state, and the same `dfqbench submit` goes on from there.
    """
    from dfqbench.run.cluster import slurm
    from dfqbench.run.cluster.submission import read_submission

    folder = started(out, run)
    jobs = read_submission(folder.path).jobs
    if not jobs:
        hint = f"stop it with Ctrl-C in its terminal; `dfqbench watch {run} --once` shows its processes"
        raise UsageError(f"no job of run '{folder.name}' was submitted", hint)
    elements = slurm.queued(jobs)
    if not elements:
        typer.echo(f"no job of run '{folder.name}' waits or runs")
        return
    slurm.cancel(jobs)
    working = sum(element.state == "RUNNING" for element in elements.values())
    typer.echo(f"cancelled: {working} that worked, {len(elements) - working} that waited; what is finished is kept")
