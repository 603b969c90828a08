"""`dfqbench run`: runs a grid and ends with its table."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

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
from dfqbench.cli.run_options import (
    AnyEnvironmentOption,
    CheckpointOption,
    EvaluationLimitOption,
    ExecutorOption,
    FailFastOption,
    FreshOption,
    JobsOption,
    MaxFailuresOption,
    MemoryOption,
    NameOption,
    OracleOption,
    RetryOption,
    SeparateOption,
    TimeLimitOption,
    YesOption,
    checked_executor,
    checked_retry,
    seconds_of,
)
from dfqbench.run.store.run_folder import DEFAULT_OUT
from dfqbench.run.store.status import retry_for

if TYPE_CHECKING:
    from dfqbench.plugins import Plugins
    from dfqbench.run.execute.cancellation import Cancellation
    from dfqbench.run.schedule.scheduler import Summary
    from dfqbench.run.store.record import Record
    from dfqbench.run.store.run_folder import RunFolder

FAILED, PREEMPTED, INTERRUPTED = 1, 3, 130
"""Exit statuses besides 0 (everything ok or skipped) and 2 (the request was wrong)."""
SHOWN_FAILURES = 40


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
    name: NameOption = None,
    yes: YesOption = False,
    jobs: JobsOption = None,
    retry: RetryOption = None,
    fresh: FreshOption = False,
    fail_fast: FailFastOption = False,
    max_failures: MaxFailuresOption = 0,
    time_limit: TimeLimitOption = None,
    evaluation_limit: EvaluationLimitOption = None,
    checkpoint_every: CheckpointOption = "5m",
    memory: MemoryOption = 0,
    executor: ExecutorOption = "local",
    separate: SeparateOption = False,
    any_environment: AnyEnvironmentOption = False,
    oracle: OracleOption = 0,
) -> None:
    """Run a grid and print its table.

    Synthesizes images, quantizes, evaluates; cells that were finished before are not run again, and one that was
    interrupted goes on from its last checkpoint. Several of these commands may work on one folder. The exit status is
    1 if a cell failed, if a plugin is broken, or if no cell could be run; 3 if the run was stopped by SIGTERM or
    SIGUSR1, and 130 by Ctrl-C: the same command goes on from there.
    """
    from rich.console import Console

    from dfqbench.run.execute.cancellation import Cancellation
    from dfqbench.run.schedule.run import Options, run_plan
    from dfqbench.run.schedule.run_environment import Rules

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
    rules = Rules(
        any_environment=any_environment,
        retry=checked_retry(retry),
        fresh=fresh,
        time_limit=seconds_of("--time-limit", time_limit),
        evaluation_limit=seconds_of("--evaluation-limit", evaluation_limit),
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
        executor=checked_executor(executor),
    )
    found, plugins = planned(request)
    stop = Cancellation()
    summary, folder = run_plan(found, plugins, options, Console(stderr=True), stop)
    typer.echo(_write_tables(folder, summary.records))
    typer.echo(f"records and tables: {folder.path}", err=True)
    _end(summary, plugins, stop)


def _write_tables(folder: RunFolder, records: Sequence[Record]) -> str:
    """Write the table into the run's folder as text, Markdown and CSV.

    Returns:
        The text form.

    Raises:
        StorageError: they cannot be written.
    """
    from dfqbench.report import hardware, render
    from dfqbench.run.schedule.run import unusable
    from dfqbench.run.store.files import write_text

    words = hardware(folder.path)
    text = render(records, "text", words)
    forms = {"txt": text, "md": render(records, "md", words), "csv": render(records, "csv", words)}
    try:
        for name, content in forms.items():
            write_text(folder.path / f"table.{name}", content if content.endswith("\n") else content + "\n")
    except OSError as error:
        raise unusable(folder, error) from error
    return text


def _end(summary: Summary, plugins: Plugins, stop: Cancellation) -> None:
    """The last lines, and the exit status."""
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
    if stop.reason == "failures":
        typer.echo(f"stopped after a failure; {summary.missing} cells are left", err=True)
    elif stop.reason is not None:
        why = "Ctrl-C" if stop.reason == "interrupt" else stop.signal_name
        typer.echo(f"stopped by {why}; {summary.missing} cells are left: the same command goes on", err=True)
        raise typer.Exit(INTERRUPTED if stop.reason == "interrupt" else PREEMPTED)
    if summary.failed or plugins.broken:
        raise typer.Exit(FAILED)
    if not any(record.top1 is not None for record in summary.records):
        typer.echo("no cell could be run; the table says why", err=True)
        raise typer.Exit(FAILED)


def _line(record: Record) -> str:
    message = record.error.message if record.error is not None else None
    return f"{record.status}: {record.cell_id} {record.label}: {message}"


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
