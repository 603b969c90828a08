"""The queue: cells that are left to run, and claims on them, so that several runs can share one folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from filelock import FileLock

from dfqbench.run.execute.events import Event, SharedJob, Sharing, SourceReady
from dfqbench.run.plan.cell import Cell
from dfqbench.run.schedule.runner import Runner
from dfqbench.run.store.locks import Locks
from dfqbench.run.store.record import Record


@dataclass(slots=True)
class Claim:
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
    partners: list[Claim] = field(default_factory=list)
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


class Queue:
    """The cells that are left to run, in the plan's order.

    All methods but `on_event` belong to the sweep's own thread.

    Attributes:
        waiting: cells that nobody here has in hand.

    Args:
        runner: knows the run.
        slots: how many workers there may be at once.
        settled: told of a cell, and its record, that another process has finished meanwhile.
    """

    def __init__(self, runner: Runner, slots: int, settled: Callable[[Cell, Record], None]) -> None:
        self.waiting: list[Cell] = []
        self._runner = runner
        self._slots = slots
        self._settled = settled
        self._locks = Locks(runner.folder.path / "locks")
        self._order: dict[int, int] = {}
        self._attempts: dict[str, int] = {}
        self._unshared: set[str] = set()
        self._by_itself: set[str] = set()
        self._claims: list[Claim] = []

    def fill(self, cells: Sequence[Cell]) -> None:
        """Takes the cells that are to be run, in the plan's order."""
        self.waiting = list(cells)
        self._order = {id(cell): number for number, cell in enumerate(cells)}
        self._attempts = {cell.cell_id: _attempt(self._runner.folder.latest(cell.cell_id)) for cell in cells}

    def forget_earlier(self) -> None:
        """Removes what a fresh run must not use, but for what another process is using."""
        folder = self._runner.folder
        for cell in self.waiting:
            for take, name, place in (
                (self._locks.source, cell.source_id, folder.source(cell.source_id)),
                (self._locks.cell, cell.cell_id, folder.checkpoints(cell.cell_id)),
            ):
                lock = take(name) if place.exists() else None
                if lock is not None:
                    shutil.rmtree(place, ignore_errors=True)
                    lock.release()

    @contextmanager
    def held(self, cells: Sequence[Cell]) -> Iterator[list[Cell]]:
        """Within it, those of some waiting cells that are free belong to nobody else."""
        locks = {cell.cell_id: lock for cell in cells if (lock := self._locks.cell(cell.cell_id)) is not None}
        try:
            yield [cell for cell in cells if cell.cell_id in locks and not self._settled_elsewhere(cell)]
        finally:
            for lock in locks.values():
                lock.release()

    def claim(self) -> Claim | None:
        """The next cell that can begin now, ours alone; None where others have all that are left.

        A cell whose source another cell is making waits for it, while others go on.
        """
        for cell in list(self.waiting):
            if self._settled_elsewhere(cell):
                continue
            lock = self._locks.cell(cell.cell_id)
            if lock is None:
                continue
            claim = Claim(cell, lock)
            # Between the look and the lock somebody may have finished it.
            if self._settled_elsewhere(cell):
                claim.release()
                continue
            if cell.problem is None and not self._claim_source(claim):
                claim.release()
                continue
            self.waiting.remove(cell)
            self._claim_partners(claim)
            self._claims.append(claim)
            return claim
        return None

    def on_event(self, claim: Claim, event: Event) -> None:
        """Note what a claim's worker reports of its source and its members; called from any thread."""
        match event:
            case SourceReady(shared):
                if not shared:
                    # Other cells would not find it either: none needs to wait for it again.
                    self._unshared.add(claim.cell.source_id)
                claim.free_source()
            case SharedJob(Sharing.ALONE):
                # The sweep's own thread puts them back.
                claim.alone = True
            case _:
                pass

    def take_back(self) -> None:
        """Puts the partners that a worker has declined among the waiting again."""
        for claim in self._claims:
            if claim.alone and claim.partners:
                declined, claim.partners = claim.partners, []
                for partner in declined:
                    self._wait_again(partner.cell)
                    partner.lock.release()

    def give_up(self, claim: Claim, not_run: Sequence[Cell]) -> None:
        """Ends a claim; those of its cells that were not run wait again, each for a worker of its own."""
        self.take_back()
        self._claims.remove(claim)
        claim.release()
        taken = {cell.cell_id for cell in claim.cells}
        for cell in not_run:
            if cell.cell_id in taken:
                self._wait_again(cell)

    def _claim_partners(self, claim: Claim) -> None:
        """Takes cells that the same worker may run beside the claim's, but leaves enough for every slot."""
        cell = claim.cell
        if cell.cell_id in self._by_itself or not self._runner.may_go_together(cell):
            return
        able = [other for other in self.waiting if other.problem is None]
        most = -(-(len(able) + 1) // self._slots) - 1
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
            self.waiting.remove(other)
            claim.partners.append(Claim(other, lock))

    def _claim_source(self, claim: Claim) -> bool:
        """Whether the cell's source is there, is the cell's own affair, or is now ours to make."""
        source = claim.cell.source_id
        if source in self._unshared or self._runner.paid_sources([claim.cell]):
            return True
        claim.source = self._locks.source(source)
        if claim.source is not None and self._runner.paid_sources([claim.cell]):
            claim.free_source()
            return True
        return claim.source is not None

    def _wait_again(self, cell: Cell) -> None:
        self._by_itself.add(cell.cell_id)
        self.waiting.append(cell)
        self.waiting.sort(key=lambda waiting: self._order[id(waiting)])

    def _settled_elsewhere(self, cell: Cell) -> bool:
        """Takes over the record that another process has written since this run began."""
        record = self._runner.folder.latest(cell.cell_id)
        if record is None or _attempt(record) <= self._attempts[cell.cell_id] or not self._runner.serves(record):
            return False
        self.waiting.remove(cell)
        self._settled(cell, record)
        return True


def _attempt(record: Record | None) -> int:
    return 0 if record is None else record.attempt
