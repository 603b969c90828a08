"""One call of `dfqbench run`: executor, estimate and scheduler."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dfqbench.api.errors import InputError, UsageError
from dfqbench.plugins.registry import REAL
from dfqbench.run.cluster.peers import PeerLog, job_id
from dfqbench.run.cluster.submission import submitted_at
from dfqbench.run.execute.cancellation import Cancellation
from dfqbench.run.execute.events import Event, Phase, Probed
from dfqbench.run.execute.executors import GRACE, InlineExecutor, LocalExecutor, memory_need, plan_slots
from dfqbench.run.plan.estimate import LONG_HOURS, Estimate, History, cost_key, format_seconds
from dfqbench.run.schedule.progress import Display
from dfqbench.run.schedule.run_environment import Rules, RunEnvironment
from dfqbench.run.schedule.scheduler import Scheduler, StorageError, Summary
from dfqbench.run.store.environment import Machine, given_command
from dfqbench.run.store.files import write_json
from dfqbench.run.store.run_folder import RunFolder, read_records
from dfqbench.targets.spec import guarded_paths

if TYPE_CHECKING:
    from rich.console import Console

    from dfqbench.plugins import Plugins
    from dfqbench.run.execute.job import Executor
    from dfqbench.run.execute.ray_cluster import RayCluster
    from dfqbench.run.plan.cell import Cell
    from dfqbench.run.plan.plan import Plan
    from dfqbench.run.store.record import Record

ExecutorName = Literal["local", "inline", "ray"]
PROBE_SECONDS = 2.0
"""Seconds of timed steps in each phase of a probe."""
QUICK_BUDGETS = frozenset({"smoke"})
"""Budgets that are short everywhere: no steps are timed for an estimate."""
QUICK_TARGET = "digits"
"""The embedded target is small enough to start at once."""


@dataclass(frozen=True, slots=True)
class Options:
    """Options of a run."""

    out: Path  # folder of results
    name: str | None  # the run's name, or None: the grid's
    device: str  # torch device
    rules: Rules = Rules()  # noqa: RUF009 - frozen  # which cells count as finished, and limits
    yes: bool = False  # whether a run of more than a day may start
    jobs: int | None = None  # cells at once, or None: one a GPU, on the CPU as many as its cores allow
    executor: ExecutorName = "local"  # where jobs run
    grace: float = GRACE  # seconds that a worker has to keep its state when it must end
    confined: bool = True  # whether plugin code is confined to what it needs, where the kernel can
    cluster: RayCluster | None = None  # whose nodes run the jobs; only for the executor `ray`


def earlier_records(out: Path) -> list[Record]:
    """Return the records of every run in a results folder; none where there is no folder."""
    try:
        return read_records(out)[0]
    except InputError:
        return []


def run_plan(
    plan: Plan, plugins: Plugins, options: Options, console: Console, cancellation: Cancellation | None = None
) -> tuple[Summary, RunFolder]:
    """Run a plan; several processes may run plans in the same folder and share the work.

    Returns:
        The summary, and the run's folder.

    Raises:
        UsageError: the run would take more than a day and `yes` was not given, or the device is not there.
        StorageError: the results folder cannot be written.
    """
    shown = options.out / (options.name or plan.grid.name)
    folder = RunFolder(shown.absolute(), shown)
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
        description = None if options.cluster is None else options.cluster.facts.description
        since = options.rules.failures_since or submitted_at(folder.path, job_id())
        rules = replace(options.rules, failures_since=since)
        env = RunEnvironment(folder, plugins, options.device, rules, guarded=plan.guarded, description=description)
        summary = _run(plan, env, options, console, cancellation or Cancellation())
    except OSError as error:
        raise unusable(folder, error) from error
    return summary, folder


def _run(plan: Plan, env: RunEnvironment, options: Options, console: Console, cancellation: Cancellation) -> Summary:
    finished_of = zip(plan.cells, env.finished_of(plan.cells), strict=True)
    left = [cell for cell, record in finished_of if record is None]
    runnable = [cell for cell in left if cell.problem is None]
    earlier = earlier_records(options.out)
    history = History(earlier)
    display = Display(console, len(left))
    if options.cluster is None or not runnable:
        executor, note = _executor(options, env.folder, plan.grid.threads, earlier, len(runnable))
    else:
        executor, note = options.cluster.executor(
            env.folder.path,
            jobs=options.jobs,
            cells=len(runnable),
            threads=plan.grid.threads,
            grace=options.grace,
            confined=options.confined,
            data=dict.fromkeys(path for cell in runnable for path in guarded_paths(cell.dataset)),
        )
    try:
        if runnable:
            env.describe()
            if isinstance(executor, LocalExecutor):
                # Fail before anything is begun where the device is missing.
                executor.evaluator(executor.slots[0]).start()
        slots = len(executor.slots)
        if job_id():
            # The walltime of a batch job is for cells, and its estimate has no reader.
            whole = history.estimate(runnable, env.device, {}, env.saved_sources(runnable))
        else:
            whole = timed_estimate(left, history, env, executor, display.say)
        estimate, expected = whole.at_once(slots), whole.seconds if whole.known else None
        where = f"{len(plan.cells)} cells on {options.device}" + (f", {slots} at once" if slots > 1 else "")
        finished = len(plan.cells) - len(left)
        done = f", {finished} finished before" if finished else ""
        for line in (
            f"grid {plan.grid.name}: {plan.contents}; {where}{done}; {estimate}",
            *plan.shortened,
            *(f"broken plugin {broken.origin}: {broken.message}" for broken in env.plugins.broken),
            *([note] if note and len(runnable) > 1 else []),
        ):
            display.say(line)
        if estimate.seconds > LONG_HOURS * 3600 and not options.yes:
            raise UsageError(
                f"this run would take about {format_seconds(estimate.seconds)}",
                "add --yes, or choose a smaller budget: --budget medium (1/20 of the steps), short (1/100) or tiny",
            )
        about = {"command": given_command(), "notes": plan.notes}
        write_json(env.folder.path / "plan.json", {"cells": [cell.cell_id for cell in plan.cells], **about})
        with PeerLog(env.folder.path, slots, expected) as display.log, cancellation.on_signals():
            summary = Scheduler(env, executor, display, history, cancellation).run(plan.cells)
    finally:
        display.close()
        executor.close()
    if summary.elsewhere:
        summary.notes.append(
            f"{summary.elsewhere} of the cells were finished in another environment (the table names the hardware)"
        )
    return summary


def _executor(
    options: Options, folder: RunFolder, threads: int, earlier: Sequence[Record], cells: int
) -> tuple[Executor, str]:
    if options.executor == "inline":
        return InlineExecutor(threads, options.device), ""
    need = memory_need(earlier, options.device)
    slots, note = plan_slots(options.device, options.jobs, threads, need, Machine.here(), cells=cells)
    executor = LocalExecutor(slots, folder.path, threads, options.device, options.grace, confined=options.confined)
    return executor, note


def timed_estimate(
    cells: Iterable[Cell], history: History, env: RunEnvironment, executor: Executor, say: Callable[[str], None]
) -> Estimate:
    """Return the expected time of cells that can run.

    For long cells without earlier records, a few steps are timed; `say` prints a line before that.
    """
    runnable = [cell for cell in cells if cell.problem is None]
    unknown: dict[tuple[Any, ...], Cell] = {}
    for cell in runnable:
        quick = cell.dataset.name == QUICK_TARGET or cell.budget.name in QUICK_BUDGETS or cell.method.name == REAL
        if not quick and history.seconds(cell, env.device) is None:
            unknown.setdefault(cost_key(cell, env.device), cell)
    if unknown:
        say(f"timing a few steps of {len(unknown)} kinds of cells, for the estimate")
    probed = {key: seconds for key, cell in unknown.items() if (seconds := probe(env, executor, cell))}
    return history.estimate(runnable, env.device, probed, env.saved_sources(runnable))


def probe(env: RunEnvironment, executor: Executor, cell: Cell) -> dict[str, float] | None:
    """Time a few steps of a cell in a worker and extrapolate.

    Returns:
        Expected seconds of the cell without evaluation (`wall`, `synthesis`, `paid_synthesis`);
        None where it failed (the run will say why).
    """
    rest: dict[Phase, float] = {}

    def on_event(event: Event) -> None:
        if isinstance(event, Probed):
            rest[event.phase] = max(0.0, event.seconds - PROBE_SECONDS)

    with tempfile.TemporaryDirectory(prefix=".probe-", dir=env.folder.path, ignore_cleanup_errors=True) as attempt:
        begin = time.monotonic()
        job = env.job([(cell, Path(attempt))], begin, PROBE_SECONDS)
        outcome = executor.run(job, executor.slots[0], on_event, Cancellation())
    if outcome.status != "ok" and not rest:
        return None
    wall = time.monotonic() - begin + sum(rest.values())
    synthesis = rest.get(Phase.SYNTHESIS, 0.0)
    return {"wall": wall, "synthesis": synthesis, "paid_synthesis": synthesis}


def unusable(folder: RunFolder, error: OSError) -> StorageError:
    """Return the error of a results folder that cannot be read or written."""
    return StorageError(
        f"{folder.shown} cannot be used: {error.strerror or error}",
        "finished cells are safe; make room or repair it, and give the same command again",
    )
