"""One call of `dfqbench run`: plan, estimate, sweep, table files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dfqbench.api.errors import InputError, UsageError
from dfqbench.run.execute.cancellation import Stop
from dfqbench.run.execute.local import GRACE, Host, LocalExecutor
from dfqbench.run.plan.estimate import LONG_HOURS, Estimate, History, spoken
from dfqbench.run.plan.plan import Plan
from dfqbench.run.schedule.probe import timed_estimate
from dfqbench.run.schedule.progress import Display
from dfqbench.run.schedule.runner import Rules, Runner, Site
from dfqbench.run.schedule.scheduler import StorageError, Summary, Sweep
from dfqbench.run.schedule.slots import Machine, Need, plan_slots
from dfqbench.run.store.environment import describe_environment
from dfqbench.run.store.record import Record
from dfqbench.run.store.run_folder import RunFolder, read_records, write_json

if TYPE_CHECKING:
    from rich.console import Console

    from dfqbench.plugins import Plugins
    from dfqbench.run.execute.executor import Executor

ExecutorName = Literal["local", "inline"]


@dataclass(frozen=True, slots=True)
class Options:
    """How to run, apart from what.

    Attributes:
        out: folder of results.
        name: the run's name, or None: the grid's.
        device: torch device.
        rules: what counts as finished, and when to give up.
        yes: whether a run of more than a day may start.
        jobs: cells at once, or None: one a GPU, on the CPU one.
        executor: where jobs run.
        grace: seconds that a worker has to keep its state when it must end.
    """

    out: Path
    name: str | None
    device: str
    rules: Rules = Rules()  # noqa: RUF009 - frozen
    yes: bool = False
    jobs: int | None = None
    executor: ExecutorName = "local"
    grace: float = GRACE


def earlier_records(out: Path) -> list[Record]:
    """Records of every run in a results folder; empty where there is none."""
    try:
        return read_records(out)[0]
    except InputError:
        return []


def run_plan(
    plan: Plan, plugins: Plugins, options: Options, console: Console, stop: Stop | None = None
) -> tuple[Summary, RunFolder]:
    """Runs a plan; several processes may run plans in the same folder and share the work.

    Args:
        plan: what to run.
        plugins: what is offered.
        options: how.
        console: where progress goes.
        stop: asked by signals and by too many failures.

    Returns:
        What was done, and the run's folder.

    Raises:
        UsageError: the run would take more than a day and `yes` was not given, or the device is not there.
        StorageError: the results folder cannot be written.
    """
    folder = RunFolder(options.out / (options.name or plan.grid.name))
    stop = stop or Stop()
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
        summary = _swept(plan, plugins, options, folder=folder, console=console, stop=stop)
        write_json(folder.path / "plan.json", {"cells": [cell.cell_id for cell in plan.cells], "notes": plan.notes})
    except OSError as error:
        raise unusable(folder, error) from error
    return summary, folder


def _swept(
    plan: Plan, plugins: Plugins, options: Options, *, folder: RunFolder, console: Console, stop: Stop
) -> Summary:
    site = Site(options.device, describe_environment(options.device), tuple(plan.guarded))
    runner = Runner(folder, plugins, site, options.rules)
    waiting = [cell for cell in plan.cells if runner.finished(cell) is None]
    runnable = [cell for cell in waiting if cell.problem is None]
    earlier = earlier_records(options.out)
    history = History(earlier)
    display = Display(console, len(waiting))
    executor, note = _executor(options, folder, plan.grid.threads, earlier)
    try:
        if runnable:
            runner.describe()
            if isinstance(executor, LocalExecutor):
                # Whether the device is there is found out before anything is begun.
                executor.evaluator(executor.slots[0]).start()
        estimate = timed_estimate(waiting, history, runner, executor, display.say)
        _announce(plan, plugins, len(waiting), estimate, options=options, display=display)
        if note and len(runnable) > 1:
            display.say(note)
        _refuse_long(estimate, options)
        with stop.on_signals():
            summary = Sweep(runner, executor, display, history, stop).run(plan.cells)
    finally:
        display.close()
        executor.close()
    if summary.elsewhere:
        summary.notes.append(
            f"{summary.elsewhere} of the cells were finished in another environment (the table names the hardware)"
        )
    return summary


def _executor(options: Options, folder: RunFolder, threads: int, earlier: Sequence[Record]) -> tuple[Executor, str]:
    if options.executor == "inline":
        from dfqbench.run.execute.inline import InlineExecutor

        return InlineExecutor(threads, options.device), ""
    need = Need.of(earlier, options.device)
    slots, note = plan_slots(options.device, options.jobs, threads, need, Machine.here())
    return LocalExecutor(slots, Host(folder.path, threads, options.device, options.grace)), note


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


def unusable(folder: RunFolder, error: OSError) -> StorageError:
    """Return the error of a results folder that cannot be read or written."""
    return StorageError(
        f"{folder.path} cannot be used: {error.strerror or error}",
        "finished cells are safe; make room or repair it, and give the same command again",
    )
