"""The scheduler: which cell runs next and where, until none is left or the run is cancelled."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial

from dfqbench.api.errors import DfqError
from dfqbench.run.execute.cancellation import Cancellation
from dfqbench.run.execute.events import Event, Phase, PhaseStarted, Progress
from dfqbench.run.execute.job import MOST_STUDENTS, Executor, OnEvent, Slot
from dfqbench.run.plan.cell import Cell
from dfqbench.run.plan.estimate import History
from dfqbench.run.schedule.cell_run import evaluate_cached, run_job
from dfqbench.run.schedule.observers import Observers
from dfqbench.run.schedule.progress import Display
from dfqbench.run.schedule.queue import Lease, Queue
from dfqbench.run.schedule.run_environment import RunEnvironment
from dfqbench.run.store.record import Record
from dfqbench.run.store.run_folder import CachedStudent
from dfqbench.run.store.status import FAULTY

_Records = list[tuple[Cell, Record | None]]
"""Cells of a worker with their records; None where one was not run."""
POLL, LONG_POLL = 0.5, 10.0
"""Seconds between looks at cells that another run has leased: a tenth of the time without one, between these."""


class StorageError(DfqError):
    """The results folder cannot be written; finished cells are safe."""


@dataclass(slots=True)
class Summary:
    """The result of a run."""

    records: list[Record] = field(default_factory=list)  # the newest of each planned cell, in the plan's order
    reused: int = 0  # cells that were finished before
    elsewhere: int = 0  # of these, cells that were finished in another environment
    failed: list[Record] = field(default_factory=list)  # cells that failed or are invalid now
    missing: int = 0  # cells without a record, or preempted
    notes: list[str] = field(default_factory=list)  # messages for the end
    holders: list[str] = field(default_factory=list)  # of all cells that are left, if other runs hold each of them


class Scheduler:
    """Runs cells with an executor; adds their records to the history, which predicts the time left."""

    def __init__(
        self,
        env: RunEnvironment,
        executor: Executor,
        display: Display,
        history: History,
        cancellation: Cancellation | None = None,
    ) -> None:
        self._env = env
        self._executor = executor
        self._display = display
        self._history = history
        self._cancellation = cancellation or Cancellation()
        self._observers = Observers(env.plugins, display.say, self._cancellation, in_thread=not executor.in_process)
        self._queue = Queue(env, len(executor.slots), self._count)
        self._saved: set[str] = set()
        self._records: dict[int, Record] = {}
        self._summary = Summary()
        self._failures = 0
        self._storage_error: OSError | None = None
        self._announced = False
        self._idle_since: float | None = None
        self._looked_at = 0.0

    def run(self, cells: Iterable[Cell]) -> Summary:
        """Run every cell that is not finished.

        Cells are begun in order, but one whose source another cell is making waits for it while others go on.

        Raises:
            OSError: the results folder cannot be written.
        """
        cells = list(cells)
        left = []
        for cell, record in zip(cells, self._env.finished_of(cells), strict=True):
            if record is None:
                left.append(cell)
            else:
                self._summary.reused += 1
                self._summary.elsewhere += record.environment != self._env.environment
                self._records[id(cell)] = record
                if self._env.rules.failures_since and (record.finished_at or "") >= self._env.rules.failures_since:
                    self._count_failure(record)
        self._queue.fill(left)
        if self._env.rules.fresh:
            self._queue.remove_earlier()
        with self._observers.working():
            self._evaluate_cached()
            self._saved = self._env.saved_sources(self._queue.waiting)
            if self._executor.in_process:
                self._run_one_by_one()
            else:
                self._run_in_threads()
        if self._storage_error is not None:
            raise self._storage_error
        return self._summarize(cells)

    def _evaluate_cached(self) -> None:
        """Evaluate the students that the folder holds already; those of one network and data in one pass."""
        students = self._env.cached_students() if self._queue.waiting else {}
        groups: dict[str, list[Cell]] = {}
        for cell in self._queue.waiting:
            if cell.problem is None and cell.student_id in students:
                groups.setdefault(cell.evaluation_id, []).append(cell)
        for group in groups.values():
            for start in range(0, len(group), MOST_STUDENTS):
                if self._cancellation.reason is None:
                    self._evaluate_group(group[start : start + MOST_STUDENTS], students)

    def _evaluate_group(self, cells: Sequence[Cell], students: Mapping[str, CachedStudent]) -> None:
        records: list[Record | None] = []
        with self._queue.lease_free(cells) as lease:
            view = self._display.begin(f"{len(lease.cells)} students that are there already")
            view.event(PhaseStarted(Phase.EVALUATION))
            try:
                if lease.cells:
                    records = self._records_of(lease, students, view.event)
            finally:
                view.close()
        for cell, record in zip(lease.cells, records, strict=False):
            if record is not None:
                self._queue.waiting.remove(cell)
                self._add(cell, record)

    def _records_of(
        self, lease: Lease, students: Mapping[str, CachedStudent], on_event: OnEvent
    ) -> list[Record | None]:
        """Evaluate students, and end that when the run is cancelled."""
        evaluator = self._executor.evaluator(self._executor.slots[0])
        evaluate = partial(
            evaluate_cached,
            *(self._env, lease, students),
            evaluator=evaluator,
            cancellation=self._cancellation,
            on_event=on_event,
        )
        if self._executor.in_process:
            return evaluate()
        with ThreadPoolExecutor(1, thread_name_prefix="cached") as pool:
            work = pool.submit(evaluate)
            while not wait([work], timeout=POLL).done:
                if self._cancellation.reason is not None:
                    evaluator.kill()
            return work.result()

    def _too_late(self) -> bool:
        """Check whether the time is over in which cells are begun."""
        return time.time() > self._env.rules.last_begin

    def _run_one_by_one(self) -> None:
        while self._queue.waiting and self._cancellation.reason is None:
            if self._too_late():
                self._cancellation.request("walltime")
                return
            lease = self._next_lease()
            if lease is not None:
                self._finish(lease, self._run_lease(lease, self._executor.slots[0]))
            elif self._leaves():
                return
            else:
                self._cancellation.wait(POLL)

    def _next_lease(self) -> Lease | None:
        """Lease the next cell; the longer there was none, the less often the folder is looked at."""
        now = time.monotonic()
        if self._idle_since is not None and not self._queue.changed:
            pause = min(LONG_POLL, max(POLL, (now - self._idle_since) / 10))
            if now - self._looked_at < pause:
                return None
        if self._env.rules.max_failures:
            self._queue.take_settled()
            if self._cancellation.reason is not None:
                return None
        lease = self._queue.lease_next()
        self._looked_at = time.monotonic()
        if lease is not None:
            self._idle_since = None
        elif self._idle_since is None:
            self._idle_since = now
        return lease

    def _leaves(self) -> bool:
        """Check, where no worker runs, that other runs hold every cell that is left, and live."""
        if not self._queue.all_elsewhere:
            return False
        if self._queue.holders_live:
            self._summary.holders = self._queue.holders()
            return True
        if not self._announced:
            self._announced = True
            count, holders = len(self._queue.waiting), ", ".join(self._queue.holders())
            self._display.say(
                f"waiting for a sign of life of {holders}, which began the last {count} cells; without one they are "
                f"taken over after {self._env.rules.lease_seconds:.0f} s"
            )
        return False

    def _run_in_threads(self) -> None:
        with ThreadPoolExecutor(len(self._executor.slots), thread_name_prefix="slot") as pool:
            try:
                self._fill_slots(pool)
            except BaseException:
                # The pool waits for workers, none of which may go on for hours where the scheduler itself fails.
                self._cancellation.request("storage")
                self._cancellation.hurry = True
                raise

    def _fill_slots(self, pool: ThreadPoolExecutor) -> None:
        free = list(self._executor.slots)
        running: dict[Future[_Records | OSError], tuple[Lease, Slot]] = {}
        while running or (self._queue.waiting and self._cancellation.reason is None):
            self._queue.take_back()
            while free and self._queue.waiting and self._cancellation.reason is None and not self._too_late():
                lease = self._next_lease()
                if lease is None:
                    break
                slot = free.pop(0)
                running[pool.submit(self._run_lease, lease, slot)] = (lease, slot)
            if not running:
                if self._queue.waiting and self._too_late():
                    self._cancellation.request("walltime")
                elif self._leaves():
                    return
                self._cancellation.wait(POLL)
                continue
            done, _ = wait(running, timeout=POLL, return_when=FIRST_COMPLETED)
            if self._cancellation.reason is not None:
                # Evaluations are short, but so is the time that a batch system gives.
                for _, slot in running.values():
                    self._executor.evaluator(slot).kill()
            for future in done:
                lease, slot = running.pop(future)
                free.append(slot)
                free.sort(key=lambda slot: slot.number)
                self._finish(lease, future.result())

    def _run_lease(self, lease: Lease, slot: Slot) -> _Records | OSError:
        cells = list(lease.cells)
        view = self._display.begin(cells[0].label)
        observed = self._env.new_record(cells[0], 0)

        def on_event(event: Event) -> None:
            self._queue.on_event(lease, event)
            if isinstance(event, Progress):
                self._observers.progress(observed, event)
            view.event(event)

        try:
            if cells[0].problem is not None:
                return [(cells[0], self._env.record_problem(cells[0]))]
            records = run_job(
                self._env, lease, slot, executor=self._executor, cancellation=self._cancellation, on_event=on_event
            )
            return list(zip(cells, records, strict=True))
        except OSError as error:
            return error
        finally:
            view.close()

    def _finish(self, lease: Lease, records: _Records | OSError) -> None:
        if isinstance(records, OSError):
            self._queue.end(lease, [])
            self._storage_error = records
            self._cancellation.request("storage")
            return
        self._queue.end(lease, [cell for cell, record in records if record is None])
        for cell, record in records:
            if record is not None:
                self._add(cell, record)

    def _add(self, cell: Cell, record: Record) -> None:
        self._count(cell, record, elsewhere=False)
        self._observers.finished(record)

    def _count(self, cell: Cell, record: Record, *, elsewhere: bool = True) -> None:
        """Count a finished cell; of one that another run has finished, nothing is estimated anew."""
        self._records[id(cell)] = record
        self._history.add(record)
        seconds: float | None = None
        if not elsewhere:
            self._saved |= self._env.saved_sources([cell])
            left = self._history.estimate(self._queue.waiting, self._env.device, {}, self._saved)
            seconds = left.seconds / len(self._executor.slots) if left.known else None
        self._display.end(cell.label, record, seconds)
        self._count_failure(record)

    def _count_failure(self, record: Record) -> None:
        self._failures += record.status in FAULTY
        if self._env.rules.max_failures and self._failures >= self._env.rules.max_failures:
            self._cancellation.request("failures")

    def _summarize(self, cells: Sequence[Cell]) -> Summary:
        summary = self._summary
        for cell in cells:
            record = self._records.get(id(cell))
            if record is None or record.status == "preempted":
                summary.missing += 1
            # Without a record of this run, that of an earlier one stays in the table.
            record = record or self._env.folder.latest(cell.cell_id)
            if record is not None:
                summary.records.append(record)
                if record.status in FAULTY:
                    summary.failed.append(record)
        return summary
