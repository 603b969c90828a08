"""The sweep: which cell runs next and where, until none is left or somebody asks to stop."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from filelock import FileLock

from dfqbench.api.errors import DfqError
from dfqbench.run.cell import Cell
from dfqbench.run.display import Display
from dfqbench.run.estimate import History
from dfqbench.run.executor import Executor, OnEvent, Slot
from dfqbench.run.known import KnownStudent
from dfqbench.run.locks import Locks
from dfqbench.run.measure import attempt, evaluate_known, without_running
from dfqbench.run.runner import Runner
from dfqbench.run.statuses import FAULTY
from dfqbench.run.stop import Stop

_Records = list[tuple[Cell, dict[str, Any] | None]]
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

    records: list[dict[str, Any]] = field(default_factory=list)
    reused: int = 0
    elsewhere: int = 0
    failed: list[dict[str, Any]] = field(default_factory=list)
    missing: int = 0
    notes: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _Claim:
    """A cell that is ours for now, with the locks that make it so.

    Attributes:
        cell: the cell.
        lock: its lock.
        source: the lock on its source, where the cell is to make it.
        partners: further cells of the same source for the same worker.
        alone: whether the worker has declined the partners.
    """

    cell: Cell
    lock: FileLock
    source: FileLock | None = None
    partners: list[_Claim] = field(default_factory=list)
    alone: bool = False

    @property
    def cells(self) -> list[Cell]:
        """The cell and its partners."""
        return [self.cell, *(partner.cell for partner in self.partners)]

    def free_source(self) -> None:
        """Lets others have the source."""
        source, self.source = self.source, None
        if source is not None:
            source.release()

    def release(self) -> None:
        """Lets others have everything."""
        self.free_source()
        for claim in (self, *self.partners):
            claim.lock.release()


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
        self._locks = Locks(runner.folder.path / "locks")
        self._unshared: set[str] = set()
        self._by_itself: set[str] = set()
        self._claims: list[_Claim] = []
        self._known: dict[str, int] = {}
        self._paid: set[str] = set()
        self._waiting: list[Cell] = []
        self._free: list[Slot] = []
        self._found: dict[int, dict[str, Any]] = {}
        self._order: dict[int, int] = {}
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
        self._order = {id(cell): number for number, cell in enumerate(cells)}
        for cell in cells:
            before = self._runner.finished(cell)
            if before is None:
                self._waiting.append(cell)
                self._known[cell.cell_id] = self._attempts(cell)
            else:
                self._summary.reused += 1
                self._summary.elsewhere += before.get("environment") != self._runner.environment
                self._found[id(cell)] = before
        if self._runner.rules.fresh:
            self._forget_earlier()
        self._evaluate_known()
        self._paid = self._runner.paid_sources(self._waiting)
        if self._executor.in_process:
            self._one_by_one()
        else:
            self._at_once()
        if self._storage is not None:
            raise self._storage
        return self._summed(cells)

    def _forget_earlier(self) -> None:
        """Removes what a fresh run must not use, but for what another process is using."""
        folder = self._runner.folder
        for cell in self._waiting:
            for take, name, place in (
                (self._locks.source, cell.source_id, folder.source(cell.source_id)),
                (self._locks.cell, cell.cell_id, folder.checkpoints(cell.cell_id)),
            ):
                lock = take(name) if place.exists() else None
                if lock is not None:
                    shutil.rmtree(place, ignore_errors=True)
                    lock.release()

    def _evaluate_known(self) -> None:
        """Evaluates the students that the folder holds already; those of one network and data in one pass."""
        known = self._runner.known_students() if self._waiting else {}
        able = [cell for cell in self._waiting if cell.problem is None and cell.student_id in known]
        groups: dict[str, list[Cell]] = {}
        for cell in able:
            groups.setdefault(cell.evaluation_id, []).append(cell)
        parts = [cells[i : i + MOST_AT_ONCE] for cells in groups.values() for i in range(0, len(cells), MOST_AT_ONCE)]
        for part in parts:
            if self._stop.reason is None:
                self._evaluate_part(part, known)

    def _evaluate_part(self, cells: Sequence[Cell], known: Mapping[str, KnownStudent]) -> None:
        locks = {cell.cell_id: lock for cell in cells if (lock := self._locks.cell(cell.cell_id)) is not None}
        mine = [cell for cell in cells if cell.cell_id in locks and not self._settled_elsewhere(cell)]
        view = self._display.begin(f"{len(mine)} students that are there already")
        view.event({"event": "phase", "name": "evaluation"})
        try:
            made = self._made([(cell, known[cell.student_id]) for cell in mine]) if mine else []
        finally:
            view.close()
            for lock in locks.values():
                lock.release()
        for cell, record in zip(mine, made, strict=False):
            self._waiting.remove(cell)
            self._note(cell, record)

    def _made(self, found: Sequence[tuple[Cell, KnownStudent]]) -> list[dict[str, Any]]:
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
        while self._waiting and self._stop.reason is None:
            claim = self._claim()
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
        running: dict[Future[_Records | OSError], tuple[_Claim, Slot]] = {}
        with ThreadPoolExecutor(len(self._free), thread_name_prefix="slot") as pool, self._hurried():
            while running or (self._waiting and self._stop.reason is None):
                self._take_back()
                while self._free and self._waiting and self._stop.reason is None:
                    claim = self._claim()
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

    def _claim(self) -> _Claim | None:
        """The next cell that can begin now, ours alone; None where others have all that are left."""
        for cell in list(self._waiting):
            if self._settled_elsewhere(cell):
                continue
            lock = self._locks.cell(cell.cell_id)
            if lock is None:
                continue
            claim = _Claim(cell, lock)
            # Between the look and the lock somebody may have finished it.
            if self._settled_elsewhere(cell):
                claim.release()
                continue
            if cell.problem is None and not self._claim_source(claim):
                claim.release()
                continue
            self._waiting.remove(cell)
            self._claim_partners(claim)
            self._claims.append(claim)
            return claim
        return None

    def _claim_partners(self, claim: _Claim) -> None:
        """Takes cells that the same worker may run beside the claim's, but leaves enough for every slot."""
        cell = claim.cell
        if cell.cell_id in self._by_itself or not self._runner.may_go_together(cell):
            return
        able = [other for other in self._waiting if other.problem is None]
        most = -(-(len(able) + 1) // len(self._executor.slots)) - 1
        for other in able:
            if len(claim.partners) >= most:
                return
            if not cell.goes_with(other) or other.cell_id in self._by_itself:
                continue
            lock = self._locks.cell(other.cell_id)
            if lock is None:
                continue
            if self._settled_elsewhere(other):
                lock.release()
                continue
            self._waiting.remove(other)
            claim.partners.append(_Claim(other, lock))

    def _take_back(self) -> None:
        """Puts the partners that a worker has declined among the waiting again."""
        for claim in self._claims:
            if claim.alone and claim.partners:
                declined, claim.partners = claim.partners, []
                for partner in declined:
                    self._wait_again(partner.cell)
                    partner.lock.release()

    def _wait_again(self, cell: Cell) -> None:
        """Puts a cell that was not run among the waiting again, to run by itself."""
        self._by_itself.add(cell.cell_id)
        self._waiting.append(cell)
        self._waiting.sort(key=lambda waiting: self._order[id(waiting)])

    def _claim_source(self, claim: _Claim) -> bool:
        """Whether the cell's source is there, is the cell's own affair, or is now ours to make."""
        source = claim.cell.source_id
        if source in self._unshared or self._runner.paid_sources([claim.cell]):
            return True
        claim.source = self._locks.source(source)
        if claim.source is not None and self._runner.paid_sources([claim.cell]):
            claim.free_source()
            return True
        return claim.source is not None

    def _settled_elsewhere(self, cell: Cell) -> bool:
        """Takes over the record that another process has written since this run began."""
        record = self._runner.folder.latest(cell.cell_id)
        if record is None or int(record.get("attempt") or 0) <= self._known[cell.cell_id]:
            return False
        if not self._runner.serves(record):
            return False
        self._waiting.remove(cell)
        self._note(cell, record)
        return True

    def _attempts(self, cell: Cell) -> int:
        record = self._runner.folder.latest(cell.cell_id)
        return 0 if record is None else int(record.get("attempt") or 0)

    def _carried(self, claim: _Claim, slot: Slot) -> _Records | OSError:
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

    def _listener(self, claim: _Claim, view: Any) -> OnEvent:
        def listen(event: Mapping[str, Any]) -> None:
            if event.get("event") == "source":
                if not event.get("shared"):
                    # Others would not find it either: nobody need wait for it again.
                    self._unshared.add(claim.cell.source_id)
                claim.free_source()
            if event.get("event") == "together" and event.get("how") == "alone":
                # The sweep's own thread puts them back.
                claim.alone = True
            view.event(event)

        return listen

    def _finish(self, claim: _Claim, found: _Records | OSError) -> None:
        self._take_back()
        self._claims.remove(claim)
        claim.release()
        if isinstance(found, OSError):
            self._storage = found
            self._stop.ask("storage")
            return
        taken = {cell.cell_id for cell in claim.cells}
        for cell, record in found:
            if record is not None:
                self._note(cell, record)
            elif cell.cell_id in taken:
                self._wait_again(cell)

    def _note(self, cell: Cell, record: dict[str, Any]) -> None:
        self._found[id(cell)] = record
        self._history.note(record)
        self._paid |= self._runner.paid_sources([cell])
        left = self._history.estimate(self._waiting, self._runner.device, {}, self._paid)
        seconds = left.seconds / max(1, len(self._executor.slots))
        self._display.end(cell.label, record, seconds if left.known else None)
        for broken in self._runner.plugins.record_finished(record):
            self._summary.notes.append(f"plugin {broken.origin} failed in record_finished: {broken.message}")
        self._failures += record["status"] in FAULTY
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
            elif record["status"] == "preempted":
                summary.missing += 1
            if record is None:
                continue
            summary.records.append(record)
            if record["status"] in FAULTY:
                summary.failed.append(record)
        return summary
