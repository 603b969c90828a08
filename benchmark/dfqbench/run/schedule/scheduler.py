"""The sweep: which cell runs next and where, until none is left or somebody asks to stop."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from dfqbench.api.errors import DfqError
from dfqbench.run.execute.cancellation import Stop
from dfqbench.run.execute.events import Event, Phase, PhaseStarted
from dfqbench.run.execute.executor import Executor, OnEvent, Slot
from dfqbench.run.plan.cell import Cell
from dfqbench.run.plan.estimate import History
from dfqbench.run.schedule.cell_run import attempt, evaluate_known, without_running
from dfqbench.run.schedule.progress import Display
from dfqbench.run.schedule.queue import Claim, Queue
from dfqbench.run.schedule.runner import Runner
from dfqbench.run.store.record import Record
from dfqbench.run.store.status import FAULTY
from dfqbench.run.store.student_cache import KnownStudent

_Records = list[tuple[Cell, Record | None]]
"""Cells of a worker with their records; None where one was not run."""
MOST_AT_ONCE = 16
"""Students that are evaluated in one pass; all of them are in memory."""
POLL = 0.5
"""Seconds between looks at cells that another process has in hand."""


class StorageError(DfqError):
    """The results folder cannot be written; what was finished before is safe."""


@dataclass(slots=True)
class Summary:
    """What a run did.

    Attributes:
        records: the newest record of every planned cell that has one, in the plan's order.
        reused: cells that were finished before.
        elsewhere: of these, cells that were finished in another environment.
        failed: cells that failed or are invalid now.
        missing: cells without a record, or preempted.
        notes: things to tell at the end.
    """

    records: list[Record] = field(default_factory=list)
    reused: int = 0
    elsewhere: int = 0
    failed: list[Record] = field(default_factory=list)
    missing: int = 0
    notes: list[str] = field(default_factory=list)


class Sweep:
    """Takes cells through an executor.

    Args:
        runner: knows the run.
        executor: carries out jobs.
        display: is told what happens.
        history: for the time left; notes new records.
        stop: whether to stop.
    """

    def __init__(
        self, runner: Runner, executor: Executor, display: Display, history: History, stop: Stop | None = None
    ) -> None:
        self._runner = runner
        self._executor = executor
        self._display = display
        self._history = history
        self._stop = stop or Stop()
        self._queue = Queue(runner, len(executor.slots), self._note)
        self._paid: set[str] = set()
        self._free: list[Slot] = []
        self._found: dict[int, Record] = {}
        self._failures = 0
        self._storage: OSError | None = None
        self._summary = Summary()

    def run(self, cells: Iterable[Cell]) -> Summary:
        """Runs every cell that is not finished.

        Cells are begun in order, but one whose source another cell is making waits for it while others go on.

        Raises:
            OSError: the results folder cannot be written.
        """
        cells = list(cells)
        left = []
        for cell in cells:
            before = self._runner.finished(cell)
            if before is None:
                left.append(cell)
            else:
                self._summary.reused += 1
                self._summary.elsewhere += before.environment != self._runner.environment
                self._found[id(cell)] = before
        self._queue.fill(left)
        if self._runner.rules.fresh:
            self._queue.forget_earlier()
        self._evaluate_known()
        self._paid = self._runner.paid_sources(self._queue.waiting)
        if self._executor.in_process:
            self._one_by_one()
        else:
            self._at_once()
        if self._storage is not None:
            raise self._storage
        return self._summed(cells)

    def _evaluate_known(self) -> None:
        """Evaluates the students that the folder holds already; those of one network and data in one pass."""
        waiting = self._queue.waiting
        known = self._runner.known_students() if waiting else {}
        able = [cell for cell in waiting if cell.problem is None and cell.student_id in known]
        groups: dict[str, list[Cell]] = {}
        for cell in able:
            groups.setdefault(cell.evaluation_id, []).append(cell)
        parts = [cells[i : i + MOST_AT_ONCE] for cells in groups.values() for i in range(0, len(cells), MOST_AT_ONCE)]
        for part in parts:
            if self._stop.reason is None:
                self._evaluate_part(part, known)

    def _evaluate_part(self, cells: Sequence[Cell], known: Mapping[str, KnownStudent]) -> None:
        with self._queue.held(cells) as mine:
            view = self._display.begin(f"{len(mine)} students that are there already")
            view.event(PhaseStarted(Phase.EVALUATION))
            try:
                made = self._made([(cell, known[cell.student_id]) for cell in mine]) if mine else []
            finally:
                view.close()
        for cell, record in zip(mine, made, strict=False):
            self._queue.waiting.remove(cell)
            self._note(cell, record)

    def _made(self, found: Sequence[tuple[Cell, KnownStudent]]) -> list[Record]:
        """Evaluates students, and ends that where the run shall stop."""
        slot, executor = self._executor.slots[0], self._executor
        if executor.in_process:
            return evaluate_known(self._runner, found, slot, executor=executor, stop=self._stop)
        with ThreadPoolExecutor(1, thread_name_prefix="known") as pool:
            work = pool.submit(evaluate_known, self._runner, found, slot, executor=executor, stop=self._stop)
            while not wait([work], timeout=POLL).done:
                if self._stop.reason is not None:
                    self._interrupt(slot)
            return work.result()

    def _one_by_one(self) -> None:
        while self._queue.waiting and self._stop.reason is None:
            claim = self._queue.claim()
            if claim is None:
                self._stop.wait(POLL)
                continue
            self._finish(claim, self._carried(claim, self._executor.slots[0]))

    @contextmanager
    def _hurried(self) -> Iterator[None]:
        """Where the sweep itself fails, nobody must wait for workers that go on for hours."""
        try:
            yield
        except BaseException:
            self._stop.ask("storage")
            self._stop.hurry = True
            raise

    def _at_once(self) -> None:
        self._free = list(self._executor.slots)
        running: dict[Future[_Records | OSError], tuple[Claim, Slot]] = {}
        with ThreadPoolExecutor(len(self._free), thread_name_prefix="slot") as pool, self._hurried():
            while running or (self._queue.waiting and self._stop.reason is None):
                self._queue.take_back()
                while self._free and self._queue.waiting and self._stop.reason is None:
                    claim = self._queue.claim()
                    if claim is None:
                        break
                    slot = self._free.pop(0)
                    running[pool.submit(self._carried, claim, slot)] = (claim, slot)
                if not running:
                    self._stop.wait(POLL)
                    continue
                done, _ = wait(running, timeout=POLL, return_when=FIRST_COMPLETED)
                if self._stop.reason is not None:
                    for _, slot in running.values():
                        self._interrupt(slot)
                for future in done:
                    claim, slot = running.pop(future)
                    self._free.append(slot)
                    self._free.sort(key=lambda place: place.number)
                    self._finish(claim, future.result())

    def _interrupt(self, slot: Slot) -> None:
        """Ends an evaluation under way: it is short, but so is the time that a batch system gives."""
        self._executor.evaluator(slot).kill()

    def _carried(self, claim: Claim, slot: Slot) -> _Records | OSError:
        cell = claim.cell
        view = self._display.begin(cell.label)
        try:
            if cell.problem is not None:
                return [(cell, without_running(self._runner, cell))]
            listen, cells = self._listener(claim, view), claim.cells
            found = attempt(self._runner, cells, slot, executor=self._executor, stop=self._stop, on_event=listen)
            return list(zip(cells, found, strict=True))
        except OSError as error:
            return error
        finally:
            view.close()

    def _listener(self, claim: Claim, view: Any) -> OnEvent:
        def on_event(event: Event) -> None:
            self._queue.on_event(claim, event)
            view.event(event)

        return on_event

    def _finish(self, claim: Claim, found: _Records | OSError) -> None:
        if isinstance(found, OSError):
            self._queue.give_up(claim, [])
            self._storage = found
            self._stop.ask("storage")
            return
        self._queue.give_up(claim, [cell for cell, record in found if record is None])
        for cell, record in found:
            if record is not None:
                self._note(cell, record)

    def _note(self, cell: Cell, record: Record) -> None:
        self._found[id(cell)] = record
        self._history.note(record)
        self._paid |= self._runner.paid_sources([cell])
        left = self._history.estimate(self._queue.waiting, self._runner.device, {}, self._paid)
        seconds = left.seconds / max(1, len(self._executor.slots))
        self._display.end(cell.label, record, seconds if left.known else None)
        for broken in self._runner.plugins.record_finished(record.as_dict()):
            self._summary.notes.append(f"plugin {broken.origin} failed in record_finished: {broken.message}")
        self._failures += record.status in FAULTY
        if self._runner.rules.max_failures and self._failures >= self._runner.rules.max_failures:
            self._stop.ask("failures")

    def _summed(self, cells: Sequence[Cell]) -> Summary:
        summary = self._summary
        for cell in cells:
            record = self._found.get(id(cell))
            if record is None:
                summary.missing += 1
                # What an earlier run has found out stays in the table.
                record = self._runner.folder.latest(cell.cell_id)
            elif record.status == "preempted":
                summary.missing += 1
            if record is None:
                continue
            summary.records.append(record)
            if record.status in FAULTY:
                summary.failed.append(record)
        return summary
