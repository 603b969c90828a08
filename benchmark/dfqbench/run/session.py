"""One call of `dfqbench run`: plan, estimate, sweep, table files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from dfqbench.api.errors import InputError, UsageError
from dfqbench.run.display import Display
from dfqbench.run.environment import describe_environment
from dfqbench.run.estimate import LONG_HOURS, Estimate, History, spoken
from dfqbench.run.plan import Plan
from dfqbench.run.probe import timed_estimate
from dfqbench.run.processes import EvaluatorProcess, LocalExecutor
from dfqbench.run.runner import Runner, Summary
from dfqbench.run.store import RunFolder, read_records, write_json

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console

    from dfqbench.plugins import Plugins


@dataclass(frozen=True, slots=True)
class Options:
    """How to run, apart from what.

    Attributes:
        out: folder of results.
        name: the run's name, or None: the grid's.
        device: torch device.
        yes: whether a run of more than a day may start.
        retry: whether failed cells run again.
        any_environment: whether cells finished in another environment count.
        oracle: states of each student to evaluate besides its last, into a column of their own.
    """

    out: Path
    name: str | None
    device: str
    yes: bool
    retry: bool
    any_environment: bool
    oracle: int = 0


def earlier_records(out: Path) -> list[dict[str, Any]]:
    """Records of every run in a results folder; empty where there is none."""
    try:
        return read_records(out)[0]
    except InputError:
        return []


def run_plan(plan: Plan, plugins: Plugins, options: Options, console: Console) -> tuple[Summary, RunFolder]:
    """Runs a plan.

    Args:
        plan: what to run.
        plugins: what is offered.
        options: how.
        console: where progress goes.

    Returns:
        What was done, and the run's folder.

    Raises:
        UsageError: the run would take more than a day and `yes` was not given, or another process runs in the folder.
    """
    folder = RunFolder(options.out / (options.name or plan.grid.name))
    folder.path.mkdir(parents=True, exist_ok=True)
    with _alone(folder.path):
        environment = describe_environment(options.device)
        evaluator = EvaluatorProcess(folder.path / "evaluator.log", plan.grid.threads, options.device)
        runner = Runner(
            folder,
            plugins,
            LocalExecutor(),
            evaluator,
            device=options.device,
            environment=environment,
            guarded=plan.guarded,
            any_environment=options.any_environment,
            retry=options.retry,
            oracle=options.oracle,
        )
        waiting = [cell for cell in plan.cells if runner.finished(cell) is None]
        history = History(earlier_records(options.out))
        display = Display(console, len(waiting))
        try:
            if any(cell.problem is None for cell in waiting):
                evaluator.start()
            estimate = timed_estimate(waiting, history, runner, folder, display.say)
            _announce(plan, plugins, len(waiting), estimate, options=options, display=display)
            _refuse_long(estimate, options)
            summary = runner.run(plan.cells, display, history)
        finally:
            display.close()
            evaluator.close()
    write_json(folder.path / "plan.json", {"cells": [cell.cell_id for cell in plan.cells], "notes": plan.notes})
    return summary, folder


def _announce(
    plan: Plan, plugins: Plugins, waiting: int, estimate: Estimate, *, options: Options, display: Display
) -> None:
    for note in plan.notes:
        display.say(note)
    finished = len(plan.cells) - waiting
    done = f", {finished} finished before" if finished else ""
    display.say(f"grid {plan.grid.name}: {len(plan.cells)} cells on {options.device}{done}; {estimate}")
    for broken in plugins.broken:
        display.say(f"broken plugin {broken.origin}: {broken.message}")


def _refuse_long(estimate: Estimate, options: Options) -> None:
    if estimate.seconds > LONG_HOURS * 3600 and not options.yes:
        raise UsageError(
            f"this run would take about {spoken(estimate.seconds)}",
            "add --yes, or choose a smaller budget: --budget medium (1/20 of the steps), short (1/100) or smoke",
        )


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keeps a second process out of the run's folder; the lock of a dead process falls by itself."""
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UsageError(
            f"another process is running in {folder}", "wait for it, or choose another folder with --name"
        ) from error
    try:
        yield
    finally:
        lock.release()


def write_tables(folder: RunFolder, records: Iterable[Mapping[str, Any]]) -> str:
    """Writes the table into the run's folder as text, Markdown and CSV.

    Returns:
        The text form.
    """
    from dfqbench.report import hardware, render

    found, words = list(records), hardware(folder.path)
    text = render(found, "text", words)
    for name, content in (("txt", text), ("md", render(found, "md", words)), ("csv", render(found, "csv", words))):
        path = folder.path / f"table.{name}"
        temporary = path.with_suffix(f".{name}.part")
        temporary.write_text(content if content.endswith("\n") else content + "\n", encoding="utf-8")
        temporary.replace(path)
    return text
