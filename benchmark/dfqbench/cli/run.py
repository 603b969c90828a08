"""`dfqbench run`: runs a grid and ends with its table."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

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
from dfqbench.run.statuses import RETRIES, retry_for
from dfqbench.run.store import DEFAULT_OUT

if TYPE_CHECKING:
    from dfqbench.plugins import Plugins
    from dfqbench.run.stop import Stop
    from dfqbench.run.sweep import Summary

EXECUTORS = ("local", "inline")
FAILED, PREEMPTED, INTERRUPTED = 1, 3, 130
"""Exit statuses besides 0 (everything ok or skipped) and 2 (the request was wrong)."""
SHOWN_FAILURES = 40
_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


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
    jobs: Annotated[
        int | None,
        typer.Option("--jobs", metavar="N", min=1, help="Cells at once; one for each GPU by default, on the CPU one."),
    ] = None,
    retry: Annotated[
        str | None,
        typer.Option("--retry", metavar="failed|timeout|all", help="Run cells again that ended so; `all`: both."),
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Run every cell again, without earlier checkpoints and images.")
    ] = False,
    fail_fast: Annotated[bool, typer.Option("--fail-fast", help="Stop at the first failure.")] = False,
    max_failures: Annotated[
        int, typer.Option("--max-failures", metavar="N", min=0, help="Stop after so many failures.")
    ] = 0,
    time_limit: Annotated[
        str | None,
        typer.Option("--time-limit", metavar="TIME", help="For each cell, evaluation apart; for example 90m or 2h."),
    ] = None,
    evaluation_limit: Annotated[
        str | None,
        typer.Option("--evaluation-limit", metavar="TIME", help="For each evaluation of a network; for example 30m."),
    ] = None,
    checkpoint_every: Annotated[
        str, typer.Option("--checkpoint-every", metavar="TIME", help="Between two checkpoints of a cell.")
    ] = "5m",
    memory: Annotated[
        float, typer.Option("--memory", metavar="GIB", min=0, help="Most memory of a worker on the CPU; 0: no limit.")
    ] = 0,
    executor: Annotated[
        str,
        typer.Option("--executor", metavar="local|inline", help="`inline`: all in this process, for a debugger."),
    ] = "local",
    separate: Annotated[
        bool,
        typer.Option(
            "--separate",
            help="A worker for each cell, even where one source could serve all bit-widths; the numbers are the same.",
        ),
    ] = False,
    any_environment: Annotated[
        bool, typer.Option("--any-environment", help="Count cells finished with other versions or hardware.")
    ] = False,
    oracle: Annotated[
        int,
        typer.Option(
            "--oracle",
            metavar="N",
            min=0,
            help="Evaluate N states of each student's training too, outside the clock, into a column of its own.",
        ),
    ] = 0,
) -> None:
    """Run a grid and print its table.

    Synthesizes images, quantizes, evaluates; cells that were finished before are not run again, and one that was
    interrupted goes on from its last checkpoint. Several of these commands may work on one folder. The exit status is
    1 if a cell failed, if a plugin is broken, or if no cell could be run; 3 if the run was stopped by SIGTERM or
    SIGUSR1, and 130 by Ctrl-C: the same command goes on from there.
    """
    from rich.console import Console

    from dfqbench.api.errors import unknown_name
    from dfqbench.run.runner import Rules
    from dfqbench.run.session import Options, run_plan, write_tables
    from dfqbench.run.stop import Stop

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
    if retry is not None and retry not in RETRIES:
        raise unknown_name("argument of --retry", retry, RETRIES)
    if executor not in EXECUTORS:
        raise unknown_name("executor", executor, EXECUTORS)
    rules = Rules(
        any_environment=any_environment,
        retry=RETRIES[retry] if retry else frozenset(),
        fresh=fresh,
        time_limit=seconds_of("--time-limit", time_limit) if time_limit else 0.0,
        evaluation_limit=seconds_of("--evaluation-limit", evaluation_limit) if evaluation_limit else 0.0,
        checkpoint_every=seconds_of("--checkpoint-every", checkpoint_every),
        memory_mib=round(memory * 1024),
        max_failures=1 if fail_fast else max_failures,
        oracle=oracle,
        separate=separate,
    )
    options = Options(
        out=checked_out(out),
        name=checked_name(name),
        device=device,
        rules=rules,
        yes=yes,
        jobs=jobs,
        executor="inline" if executor == "inline" else "local",
    )
    found, plugins = planned(request)
    stop = Stop()
    summary, folder = run_plan(found, plugins, options, Console(stderr=True), stop)
    typer.echo(write_tables(folder, summary.records))
    typer.echo(f"records and tables: {folder.path}", err=True)
    _end(summary, plugins, stop)


def seconds_of(option: str, text: str) -> float:
    """Seconds of a time such as `90`, `90s`, `30m`, `2h`, `1.5d`.

    Raises:
        UsageError: it has another form.
    """
    from dfqbench.api.errors import UsageError

    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", text.strip())
    if found is None:
        raise UsageError(f"{option}: '{text}' is not a time", "write for example 90s, 30m, 2h or 1d")
    return float(found.group(1)) * _UNITS[found.group(2)]


def _end(summary: Summary, plugins: Plugins, stop: Stop) -> None:
    """The last lines, and the exit status."""
    for note in summary.notes:
        typer.echo(note, err=True)
    for record in summary.records:
        if record["status"] == "collapsed":
            typer.echo(_line(record), err=True)
    if summary.failed:
        typer.echo(f"{len(summary.failed)} failed; look closer with `dfqbench show CELL`", err=True)
        for record in summary.failed[:SHOWN_FAILURES]:
            typer.echo(f"  {_line(record)}", err=True)
        if len(summary.failed) > SHOWN_FAILURES:
            typer.echo(f"  and {len(summary.failed) - SHOWN_FAILURES} more", err=True)
        again = retry_for({record["status"] for record in summary.failed})
        typer.echo(f"run just these again: {again_command(sys.argv[1:], again)}", err=True)
    if stop.reason == "failures":
        typer.echo(f"stopped after a failure; {summary.missing} cells are left", err=True)
    elif stop.reason is not None:
        why = "Ctrl-C" if stop.reason == "interrupt" else stop.word
        typer.echo(f"stopped by {why}; {summary.missing} cells are left: the same command goes on", err=True)
        raise typer.Exit(INTERRUPTED if stop.reason == "interrupt" else PREEMPTED)
    if summary.failed or plugins.broken:
        raise typer.Exit(FAILED)
    if not any(record.get("top1") is not None for record in summary.records):
        typer.echo("no cell could be run; the table says why", err=True)
        raise typer.Exit(FAILED)


def _line(record: dict[str, Any]) -> str:
    message = (record.get("error") or {}).get("message")
    return f"{record['status']}: {record['cell_id']} {record['label']}: {message}"


def again_command(arguments: Sequence[str], retry: str) -> str:
    """The command that runs failures again: the one that was given, with another `--retry`."""
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


def register(app: typer.Typer) -> None:
    """Adds the verb."""
    app.command("run")(run)
