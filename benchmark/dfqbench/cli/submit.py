"""`dfqbench submit`: run a grid as an array of SLURM jobs."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from dfqbench.api.errors import InputError, UsageError
from dfqbench.cli.options import (
    GridRequest,
    checked_choice,
    checked_device,
    checked_out,
    expand_dataclasses,
    planned,
    usable_path,
)
from dfqbench.cli.run import EXECUTORS, RunRequest, checked_name, checked_rules
from dfqbench.run.store.run_folder import DEFAULT_OUT

if TYPE_CHECKING:
    from dfqbench.run.plan.cell import Cell
    from dfqbench.run.plan.estimate import Estimate, History
    from dfqbench.run.plan.plan import Plan

MOST_PEERS = 1000
SHORTEST = 600.0
"""Seconds of walltime below which jobs would begin too few cells."""


@dataclass(frozen=True, slots=True)
class SubmitRequest:
    """How to run a grid under SLURM."""

    peers: Annotated[
        int, typer.Option(metavar="N", min=1, max=MOST_PEERS, help="Jobs that share the cells; one a GPU.")
    ] = 1
    slurm: Annotated[
        list[str] | None,
        typer.Option(metavar="OPTIONS", help="Of sbatch, as partition=gpu,gres=gpu:1,time=4:00:00 (repeatable)."),
    ] = None
    setup: Annotated[
        Path | None, typer.Option(parser=usable_path, metavar="FILE", help="Shell file that each job sources first.")
    ] = None
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the batch script only.")] = False
    probe: Annotated[bool, typer.Option("--probe", help="Only check a node: one job that runs `doctor`.")] = False


@expand_dataclasses
def submit(request: GridRequest, how: RunRequest, where: SubmitRequest) -> None:
    """Run a grid as SLURM jobs that share its cells.

    Plans here, writes a batch script into the run's folder, and submits it; each job is a `dfqbench run` with the same
    options on one folder, which all nodes must share. A job that nears its walltime keeps its state and queues itself
    again. `watch` shows how the run goes on, and `cancel` ends it; the same command again adds jobs.
    """
    from dfqbench.run.cluster import slurm
    from dfqbench.run.cluster.submission import check_same, submit_peers
    from dfqbench.run.plan.estimate import History
    from dfqbench.run.schedule.run import earlier_records
    from dfqbench.run.store.environment import given_command

    options = slurm.parse_options(where.slurm or ())
    limit = slurm.walltime(options.get("time") or "UNLIMITED")
    checked_rules(how)
    checked_choice("executor", how.executor, EXECUTORS)
    if how.fresh:
        raise UsageError("--fresh cannot be submitted: every job would run every cell", "name a new run with --name")
    setup = None if where.setup is None else where.setup.absolute()
    if setup is not None and not setup.is_file():
        raise InputError(f"--setup {setup} is no file", "name a shell file, for example one that loads modules")
    # The login node may have no GPU, and the device decides how the training loops compute.
    device = checked_device(request.device if request.device != "auto" or not slurm.wants_gpu(options) else "cuda")
    plan, plugins = planned(request, device, list_missing=True)
    run = checked_out(request.out).absolute() / (checked_name(how.name) or plan.grid.name)
    if where.probe:
        with _storage_errors(run):
            _probe(run, request, options, setup)
        return
    what = {"grid": plan.grid.model_dump(mode="json"), "targets": sorted({cell.dataset.name for cell in plan.cells})}
    check_same(run, what)
    history = History(earlier_records(request.out))
    left = _left(plan, run, how)
    peers = min(where.peers, len(left))
    estimate = history.estimate(left, device, {}).at_once(peers)
    _check_time(left, history, device, estimate, limit, yes=how.yes)
    name = dataclasses.replace(how, name=run.name, yes=True)
    grid = dataclasses.replace(request, out=run.parent, device=device)
    command = [sys.executable, "-m", "dfqbench", "run", *arguments_of(grid), *arguments_of(name)]
    again = given_command().replace(" --dry-run", "")
    script = slurm.peers_script(run, command, options, peers, setup=setup, again=again)
    jobs = "1 job" if peers == 1 else f"{peers} jobs"
    about = f"grid {plan.grid.name}: {plan.contents}; {len(left)} cells left on {device}, in {jobs}; {estimate}"
    broken = [f"broken plugin {offer.origin}: {offer.message}" for offer in plugins.broken]
    for line in (about, *plan.shortened, *plan.notes, *broken):
        typer.echo(line, err=True)
    if where.dry_run:
        typer.echo(script, nl=False)
        return
    facts = {"cells": len(plan.cells), "peers": peers, "estimate": str(estimate), "command": again}
    with _storage_errors(run):
        job = submit_peers(run, script, what, **facts)
    typer.echo(f"submitted job {job}; script and logs: {run / 'slurm'}")
    typer.echo(f"watch it: dfqbench watch {run.name if request.out == DEFAULT_OUT else run}", err=True)


@contextmanager
def _storage_errors(run: Path) -> Iterator[None]:
    """Say of errors of the file system which folder they are about."""
    from dfqbench.run.schedule.run import unusable
    from dfqbench.run.store.run_folder import RunFolder

    try:
        yield
    except OSError as error:
        raise unusable(RunFolder(run), error) from error


def arguments_of(request: GridRequest | RunRequest) -> list[str]:
    """Return the command line of options that are not the defaults; files as absolute paths."""
    arguments: list[str] = []
    hints = get_type_hints(type(request), include_extras=True)
    for field in dataclasses.fields(request):
        value = getattr(request, field.name)
        if value == field.default:
            continue
        info = hints[field.name].__metadata__[0]
        # The first name that is given to `typer.Option` is its attribute `default`.
        name = next((name for name in (info.default, *(info.param_decls or ())) if isinstance(name, str)), "")
        name = name or f"--{field.name.replace('_', '-')}"
        if value is True:
            arguments.append(name)
            continue
        for item in value if isinstance(value, list | tuple) else [value]:
            arguments += [name, str(item.absolute() if isinstance(item, Path) else item)]
    return arguments


def _left(plan: Plan, run: Path, how: RunRequest) -> list[Cell]:
    """Return the cells that are left to run; refuse a plan without any, or of which weights or data are missing."""
    from dfqbench.run.store.run_folder import RunFolder
    from dfqbench.run.store.status import RETRIES, SETTLED

    unavailable = [cell for cell in plan.cells if cell.problem and cell.choice.method not in plan.grid.absent]
    unavailable = [cell for cell in unavailable if cell.problem and cell.problem.status == "unavailable"]
    if unavailable and not how.yes and (problem := unavailable[0].problem):
        raise UsageError(
            f"{len(unavailable)} of {len(plan.cells)} cells cannot run: {problem.message}",
            "`dfqbench fetch` what is missing, leave it out (--models, --methods), or submit the rest with --yes",
        )
    settled = SETTLED - RETRIES.get(how.retry or "", frozenset())
    folder = RunFolder(run)
    latest = {cell.cell_id: folder.latest(cell.cell_id) for cell in plan.cells if cell.problem is None}
    left = [
        cell
        for cell in plan.cells
        if cell.cell_id in latest and ((record := latest[cell.cell_id]) is None or record.status not in settled)
    ]
    if not left and not how.yes:
        hint = f"`dfqbench table {run.name}` prints its table; --yes submits it for nodes of another environment"
        raise UsageError(f"no cell of run '{run.name}' is left to run", hint)
    return left or [cell for cell in plan.cells if cell.problem is None]


def _check_time(
    cells: Sequence[Cell], history: History, device: str, estimate: Estimate, limit: float, *, yes: bool
) -> None:
    """Refuse what would take longer than a day, and a walltime in which no cell, or the longest cell, cannot end."""
    from dfqbench.run.cluster.slurm import LAST_BEGIN
    from dfqbench.run.plan.estimate import LONG_HOURS, format_seconds

    if limit < SHORTEST:
        raise UsageError(
            f"--slurm: a walltime of {format_seconds(limit)} is too short: no cell is begun in its last "
            f"{format_seconds(LAST_BEGIN)}",
            f"give {format_seconds(SHORTEST)} or more, for example time=4:00:00",
        )
    if yes:
        return
    if estimate.seconds > LONG_HOURS * 3600:
        raise UsageError(
            f"this run would take about {format_seconds(estimate.seconds)}",
            "add --yes, take more --peers, or choose a smaller budget: --budget medium, short or tiny",
        )
    longest = max(history.estimate([cell], device, {}).seconds for cell in cells)
    if longest > limit:
        raise UsageError(
            f"--slurm: a walltime of {format_seconds(limit)} is shorter than a cell, about {format_seconds(longest)}",
            "ask for more time=, choose a smaller budget, or add --yes: each job then goes on from a checkpoint",
        )


def _probe(run: Path, request: GridRequest, options: Mapping[str, str | None], setup: Path | None) -> None:
    """Check a node with one job, print what it found, and set the exit status."""
    import secrets
    import time

    from dfqbench.run.cluster import slurm
    from dfqbench.run.cluster.submission import slurm_folder

    chosen: dict[str, Any] = {"data": request.data, "plugin": request.plugin}
    command = [sys.executable, "-m", "dfqbench", "doctor", "--images", "0", *arguments_of(GridRequest(**chosen))]
    with slurm_folder(run) as folder:
        token = folder / f"probe-{secrets.token_hex(4)}"
        token.touch()
        try:
            job = slurm.submit(slurm.probe_script(run, command, options, token, setup=setup))
            typer.echo(f"job {job} checks a node; Ctrl-C cancels it", err=True)
            slurm.wait_for(job)
        finally:
            token.unlink(missing_ok=True)
        log = folder / f"probe-{job.partition(';')[0]}.log"
        for _ in range(10):
            if log.is_file():
                break
            # File systems of networks may show new files late.
            time.sleep(0.5)
        else:
            hint = f"name a folder that all nodes share with --out, or look at `scontrol show job {job}`"
            raise UsageError(f"the node left no log in {folder}: it has no such folder, or did not start the job", hint)
        text = log.read_text(encoding="utf-8", errors="replace")
        log.unlink()
    typer.echo(text, nl=False)
    if slurm.PASSED not in text:
        raise typer.Exit(1)
