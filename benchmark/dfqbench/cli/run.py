"""`dfqbench run`: run a grid and print its table."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dfqbench.api.errors import UsageError
from dfqbench.cli.layout import fitted_table, stderr_console
from dfqbench.cli.options import GridRequest, checked_choice, checked_device, checked_out, expand_dataclasses, planned
from dfqbench.run.store.run_folder import DEFAULT_OUT
from dfqbench.run.store.status import RETRIES, retry_for

if TYPE_CHECKING:
    from dfqbench.run.execute.cancellation import Cancellation
    from dfqbench.run.plan.plan import Plan
    from dfqbench.run.schedule.run import ExecutorName
    from dfqbench.run.schedule.run_environment import Rules
    from dfqbench.run.schedule.scheduler import Summary
    from dfqbench.run.schedule.tracker import Tracker
    from dfqbench.run.store.record import Record
    from dfqbench.run.store.run_folder import RunFolder

FAILED, PREEMPTED, INTERRUPTED = 1, 3, 130
"""Exit statuses besides 0 (everything ok or skipped) and 2 (the request was wrong)."""
SHOWN_FAILURES = 40
EXECUTORS: tuple[ExecutorName, ...] = ("local", "inline", "ray")
_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


@dataclass(frozen=True, slots=True)
class RunRequest:
    """How to run a grid."""

    name: Annotated[str | None, typer.Option(metavar="NAME", help="Name of the run; the grid's by default.")] = None
    yes: Annotated[bool, typer.Option("--yes", help="Start even if it would take more than a day.")] = False
    jobs: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, max=4096, help="Cells at once; default: 1 a GPU, as many as CPU cores allow."),
    ] = None
    retry: Annotated[str | None, typer.Option(metavar="failed|timeout|all", help="Rerun cells that ended so.")] = None
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Run every cell again, without earlier checkpoints and images.")
    ] = False
    fail_fast: Annotated[bool, typer.Option("--fail-fast", help="Stop at the first failure.")] = False
    max_failures: Annotated[int, typer.Option(metavar="N", min=0, help="Stop after so many failures.")] = 0
    time_limit: Annotated[str | None, typer.Option(metavar="TIME", help="For a cell, not evaluation; e.g. 2h.")] = None
    evaluation_limit: Annotated[str | None, typer.Option(metavar="TIME", help="For each evaluation; e.g. 30m.")] = None
    checkpoint_every: Annotated[str, typer.Option(metavar="TIME", help="Between two checkpoints of a cell.")] = "5m"
    memory: Annotated[
        float, typer.Option(metavar="GIB", min=0, max=2**20, help="Limit of a worker on the CPU; 0: none.")
    ] = 0
    executor: Annotated[
        str,
        typer.Option(metavar="local|inline|ray", help="`inline`: in this process; `ray`: on a Ray cluster's nodes."),
    ] = "local"
    separate: Annotated[
        bool, typer.Option("--separate", help="A worker for each cell, where one could serve several; same numbers.")
    ] = False
    unconfined: Annotated[
        bool, typer.Option("--unconfined", help="Let plugin code open any file; records are flagged.")
    ] = False
    any_environment: Annotated[
        bool, typer.Option("--any-environment", help="Count cells finished with other versions or hardware.")
    ] = False
    oracle: Annotated[int, typer.Option(metavar="N", min=0, help="Also evaluate N earlier states, untimed.")] = 0
    track: Annotated[
        str | None, typer.Option(metavar="MODULE", help="Log cells to trackio, wandb, or a module like them.")
    ] = None


@expand_dataclasses
def run(request: GridRequest, how: RunRequest) -> None:
    """Run a grid and print its table.

    Synthesizes images, quantizes, evaluates; cells that were finished before are not run again, and one that was
    interrupted goes on from its last checkpoint. Several of these commands may work on one folder: each ends once the
    others have what is left, and the last one writes the table. The exit status is 1 if a cell failed, if a plugin is
    broken, or if no cell could be run; 3 if the run was stopped by SIGTERM, SIGUSR1, SIGUSR2 or shortly before the end
    of a SLURM job, and 130 by Ctrl-C: the same command goes on from there.
    """
    if sys.argv[1:] == ["run"]:
        typer.echo(_invitation(), err=True)
        raise typer.Exit(2)
    from dfqbench.run.cluster.slurm import LAST_BEGIN, end_of_walltime
    from dfqbench.run.execute.cancellation import Cancellation
    from dfqbench.run.schedule.run import Options, run_plan

    device = checked_device(request.device)
    executor = checked_choice("executor", how.executor, EXECUTORS)
    rules, tracker = checked_rules(how)
    rules = replace(rules, last_begin=end_of_walltime() - LAST_BEGIN)
    cluster = None
    if executor == "ray":
        from dfqbench.run.execute.ray_cluster import connect

        cluster = connect(request.device, request.plugin or ())
        device = cluster.device
    options = Options(
        out=checked_out(request.out),
        name=checked_name(how.name),
        device=device,
        rules=rules,
        yes=how.yes,
        jobs=how.jobs,
        executor=executor,
        confined=not how.unconfined,
        cluster=cluster,
    )
    plan, plugins = planned(request, device, precision=None if cluster is None else cluster.facts.precision)
    if tracker is not None:
        tracker.install(plugins)
    cancellation = Cancellation()
    summary, folder = run_plan(plan, plugins, options, stderr_console(), cancellation)
    if summary.holders:
        _print_left(folder, summary, request.out)
    else:
        typer.echo(_write_tables(folder, summary.records))
        _print_next(folder, plan, request.out, complete=cancellation.reason is None)
    _end(summary, broken=bool(plugins.broken or plan.problems), cancellation=cancellation)


def checked_rules(how: RunRequest) -> tuple[Rules, Tracker | None]:
    """Return what the options of a run mean: which cells count as finished and limits, and the tracker."""
    from dfqbench.run.schedule.run_environment import Rules
    from dfqbench.run.schedule.tracker import load_tracker

    _check_consistent(how)
    tracker = None if how.track is None else load_tracker(how.track)
    rules = Rules(
        any_environment=how.any_environment,
        retry=frozenset() if how.retry is None else RETRIES[checked_choice("argument of --retry", how.retry, RETRIES)],
        fresh=how.fresh,
        time_limit=limit_of("--time-limit", how.time_limit),
        evaluation_limit=limit_of("--evaluation-limit", how.evaluation_limit),
        checkpoint_every=seconds_of("--checkpoint-every", how.checkpoint_every),
        memory_mib=round(how.memory * 1024),
        max_failures=1 if how.fail_fast else how.max_failures,
        oracle=how.oracle,
        separate=how.separate,
    )
    return rules, tracker


def _check_consistent(how: RunRequest) -> None:
    """Refuse options of which one would have no effect."""
    inline = how.executor == "inline"
    contradictions = {
        ("--fresh", "--retry"): how.fresh and how.retry is not None,
        ("--fresh", "--any-environment"): how.fresh and how.any_environment,
        ("--fail-fast", "--max-failures"): how.fail_fast and how.max_failures not in {0, 1},
        ("--executor inline", "--jobs"): inline and (how.jobs or 1) > 1,
        ("--executor inline", "--memory"): inline and how.memory > 0,
        ("--executor inline", "--unconfined"): inline and how.unconfined,
    }
    for (first, second), given in contradictions.items():
        if given:
            raise UsageError(f"{second} has no effect with {first}", "leave one of them out")
    if how.memory > 0 and round(how.memory * 1024) == 0:
        raise UsageError(f"--memory {how.memory} is less than a mebibyte", "give GiB, for example --memory 8")


def _invitation() -> str:
    """Return what `run` can be given, for a call without anything."""
    from dfqbench.grid.load import read_grid
    from dfqbench.plugins import load_plugins

    grids = [(f"  --grid {file.name}", read_grid(file.path).title) for file in load_plugins().grids.values()]
    return "\n".join(
        (
            "Name what to run: a grid, with changes if you like. Nothing is run yet.\n",
            fitted_table(grids),
            "\nFor example:",
            "  dfqbench run --grid first",
            "  dfqbench run --grid w4a4 --on digits --methods zeroq,noise --bits w3a3",
            "\n`dfqbench plan` with the same options says what would be run, and for how long.",
            "`dfqbench run --help` lists the options.",
        )
    )


def _write_tables(folder: RunFolder, records: Sequence[Record]) -> str:
    """Write the table into the run's folder as text, Markdown and CSV, and return the text."""
    from dfqbench.report import describe_hardware, render
    from dfqbench.run.schedule.run import unusable
    from dfqbench.run.store.files import write_text

    environments = describe_hardware(folder.path)
    text = render(records, "text", environments)
    forms = {"txt": text, "md": render(records, "md", environments), "csv": render(records, "csv", environments)}
    try:
        for name, content in forms.items():
            write_text(folder.path / f"table.{name}", content.removesuffix("\n") + "\n")
    except OSError as error:
        raise unusable(folder, error) from error
    return text


def _print_left(folder: RunFolder, summary: Summary, out: Path) -> None:
    """Print that other runs have what is left."""
    run = folder.name if out == DEFAULT_OUT else shlex.quote(str(folder.shown))
    cells = f"{summary.missing} cells are" if summary.missing > 1 else "1 cell is"
    typer.echo(
        f"{cells} under way in {', '.join(summary.holders)}, so this run ends; the last to finish writes the table\n"
        f"until then: dfqbench table {run}",
        err=True,
    )


def _print_next(folder: RunFolder, plan: Plan, out: Path, *, complete: bool) -> None:
    """Print where the table is, how to get the page, and of a complete run what to try next and what others lack."""
    run = folder.name if out == DEFAULT_OUT else shlex.quote(str(folder.shown))
    lines = [f"table: {folder.shown / 'table.txt'}, also as .md and .csv", f"page: dfqbench report {run} --open"]
    if complete:
        lines += [f"next: {next_step(plan, run)}", *plan.notes]
    for line in lines:
        typer.echo(line, err=True)


def next_step(plan: Plan, run: str) -> str:
    """Return what to try after a plan: longer schedules, another width, more seeds, real data."""
    from dfqbench.run.schedule.run import QUICK_TARGET

    if {cell.budget.name for cell in plan.cells} == {"smoke"}:
        return "schedules long enough for numbers, dfqbench run --grid first"
    steps = []
    schemes = {cell.scheme for cell in plan.cells}
    scheme, *others = schemes
    if not others and scheme.mixed is not None:
        steps.append(f"equal widths beside it, --bits {replace(scheme, mixed=None).label},{scheme.label}")
    elif not others:
        bits = scheme.w_bits - 1 if 2 < scheme.w_bits <= 8 else 4
        steps.append(f"another width, --bits {replace(scheme, w_bits=bits, a_bits=bits).label}")
    if {cell.dataset.name for cell in plan.cells} == {QUICK_TARGET}:
        network = "pytorchcv:resnet20_cifar10"
        fetch = f"dfqbench fetch cifar10 {network}, then --on cifar10 --models {network}"
        steps.append(f"real data, {f'--on {plan.others[0]}' if plan.others else fetch}")
    elif len({cell.seed for cell in plan.cells}) == 1:
        steps.append("the spread, --seeds 0-2")
    return "; ".join(steps) or f"measure the images, dfqbench diagnose {run}"


def _end(summary: Summary, *, broken: bool, cancellation: Cancellation) -> None:
    """Print the last lines and set the exit status."""
    for note in summary.notes:
        typer.echo(note, err=True)
    for record in summary.records:
        if record.status == "collapsed":
            typer.echo(_line(record), err=True)
    if summary.failed:
        typer.echo(f"{len(summary.failed)} failed; look closer with `dfqbench show CELL`", err=True)
        for record in summary.failed[:SHOWN_FAILURES]:
            typer.echo(f"  {_line(record)}", err=True)
        if len(summary.failed) > SHOWN_FAILURES:
            typer.echo(f"  and {len(summary.failed) - SHOWN_FAILURES} more", err=True)
        again = retry_for({record.status for record in summary.failed})
        typer.echo(f"run just these again: {again_command(sys.argv[1:], again)}", err=True)
    if cancellation.reason == "failures":
        typer.echo(f"stopped after a failure; {summary.missing} cells are left", err=True)
    elif cancellation.reason is not None:
        others = {"interrupt": "Ctrl-C", "walltime": "the end of the walltime, too near to begin a cell"}
        why = others.get(cancellation.reason, cancellation.signal_name)
        typer.echo(f"stopped by {why}; {summary.missing} cells are left: the same command goes on", err=True)
        raise typer.Exit(INTERRUPTED if cancellation.reason == "interrupt" else PREEMPTED)
    if summary.failed or broken:
        raise typer.Exit(FAILED)
    if not summary.holders and not any(record.top1 is not None for record in summary.records):
        typer.echo("no cell could be run; the table says why", err=True)
        raise typer.Exit(FAILED)


def _line(record: Record) -> str:
    message = record.error.message if record.error is not None else None
    return f"{record.status}: {record.cell_id} {record.label}: {message}"


def again_command(arguments: Sequence[str], retry: str) -> str:
    """Return the command that runs failures again: the given arguments with another `--retry`."""
    kept: list[str] = []
    skip = False
    for argument in arguments:
        if skip or argument in {"--fresh", "--fail-fast"}:
            skip = False
        elif argument == "--retry":
            skip = True
        elif not argument.startswith("--retry="):
            kept.append(argument)
    return shlex.join(["dfqbench", *kept, "--retry", retry])


def checked_name(text: str | None) -> str | None:
    """Return a run's name if it can be the name of a folder."""
    if text is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}", text):
        raise UsageError(
            f"'{text}' is not the name of a run",
            "use at most 100 letters, digits, '_', '.' and '-'; --out names the folder",
        )
    return text


def seconds_of(option: str, text: str | None) -> float:
    """Return the seconds of a time such as `90`, `90s`, `30m`, `2h`, `1.5d`; 0 for None."""
    if text is None:
        return 0.0
    match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)([smhd]?)", text.strip())
    if match is None:
        raise UsageError(f"{option}: '{text}' is not a time", "write for example 90s, 30m, 2h or 1d")
    return float(match[1]) * _UNITS[match[2]]


def limit_of(option: str, text: str | None) -> float:
    """Return the seconds of a time limit; 0, no limit, for None only."""
    seconds = seconds_of(option, text)
    if text is not None and seconds <= 0:
        raise UsageError(f"{option} {text} leaves no time", "leave it out for no limit")
    return seconds
