"""The queue: cells that are left to run, and leases on them, so that several runs can share one folder."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dfqbench.run.execute.events import Event, SharedJob, Sharing, SourceReady
from dfqbench.run.plan.cell import Cell
from dfqbench.run.schedule.run_environment import RunEnvironment
from dfqbench.run.store.lease import Leases, is_held
from dfqbench.run.store.record import Record

if TYPE_CHECKING:
    from filelock import SoftFileLease


@dataclass(slots=True)
class Lease:
    """The leases of the cells of one job."""

    cells: list[Cell]  # the first cell, and members that may share its worker
    locks: list[SoftFileLease]  # of each of them
    source: SoftFileLease | None = None  # that of the source, where the first cell is to make it
    alone: bool = False  # whether the worker has declined the members

    @property
    def first(self) -> tuple[str, str]:
        """File and token of the first cell's lease."""
        return self.locks[0].lock_file, self.locks[0].token or "released"

    def holds(self, cell: Cell) -> bool:
        """Check that this run still has the lease of one of the cells."""
        lock = next(lock for leased, lock in zip(self.cells, self.locks, strict=True) if leased is cell)
        return lock.token is not None and is_held(lock.lock_file, lock.token)

    def release_source(self) -> None:
        """Release the source."""
        source, self.source = self.source, None
        if source is not None:
            source.release()

    def release(self) -> None:
        """Release everything."""
        self.release_source()
        for lock in self.locks:
            lock.release()


class Queue:
    """The cells that are left to run, in the plan's order.

    All methods except `on_event` belong to the scheduler's own thread.

    Attributes:
        waiting: cells that no worker of this run has.
        changed: whether a cell may have become free since the last `lease_next`.

    Args:
        slots: number of workers at once.
        settled: takes a cell, and its record, that another run has finished meanwhile.
    """

    def __init__(self, env: RunEnvironment, slots: int, settled: Callable[[Cell, Record], None]) -> None:
        self.waiting: list[Cell] = []
        self.changed = True
        self._env = env
        self._slots = slots
        self._settled = settled
        self._order: dict[int, int] = {}
        self._attempts: dict[str, int] = {}
        self._unshared: set[str] = set()
        self._by_itself: set[str] = set()
        self._leases: list[Lease] = []
        self._folder_leases = Leases(env.folder.path / "locks", env.rules.lease_seconds)
        self._elsewhere: list[Cell] = []

    def fill(self, cells: Sequence[Cell]) -> None:
        """Set the cells that are to be run, in the plan's order."""
        self.waiting = list(cells)
        self._order = {id(cell): number for number, cell in enumerate(cells)}
        begun = self._env.folder.begun_cells()
        self._attempts = {
            cell.cell_id: _attempt(self._env.folder.latest(cell.cell_id)) if cell.cell_id in begun else 0
            for cell in cells
        }

    def remove_earlier(self) -> None:
        """Remove sources and checkpoints, which a fresh run must not use, unless another run uses them."""
        folder = self._env.folder
        for cell in self.waiting:
            for name, path in (
                (f"source-{cell.source_id}", folder.source(cell.source_id)),
                (_name(cell), folder.checkpoints(cell.cell_id)),
            ):
                if path.exists() and (lock := self._take(name)) is not None:
                    shutil.rmtree(path, ignore_errors=True)
                    lock.release()

    @contextmanager
    def lease_free(self, cells: Sequence[Cell]) -> Iterator[Lease]:
        """Lease those of some waiting cells that are free, for the time of the block."""
        locks = {cell.cell_id: lock for cell in cells if (lock := self._take_cell(cell)) is not None}
        free = [cell for cell in cells if cell.cell_id in locks and not self._settled_elsewhere(cell)]
        try:
            yield Lease(free, [locks[cell.cell_id] for cell in free])
        finally:
            for lock in locks.values():
                lock.release()

    def lease_next(self) -> Lease | None:
        """Lease the next cell that can begin now; None where other runs have all that are left.

        A cell whose source another cell is making waits for it, while others go on.
        """
        self._elsewhere, self.changed = [], False
        cells = list(reversed(self.waiting))
        while cells:
            cell = cells.pop()
            if self._settled_elsewhere(cell):
                continue
            lock = self._take_cell(cell)
            if lock is None:
                if not self._elsewhere and cells:
                    # Many runs that look for a free cell in the same order would all try each other's.
                    place = secrets.randbelow(len(cells))
                    cells = cells[place:] + cells[:place]
                self._elsewhere.append(cell)
                continue
            lease = Lease([cell], [lock])
            # Another run may have finished it just before the lock.
            if self._settled_elsewhere(cell) or not (cell.problem is not None or self._lease_source(lease)):
                lease.release()
                continue
            self.waiting.remove(cell)
            self._lease_members(lease)
            self._leases.append(lease)
            return lease
        return None

    def take_settled(self) -> None:
        """Take over the records that other runs have written since this one began."""
        begun = self._env.folder.begun_cells()
        for cell in [cell for cell in self.waiting if cell.cell_id in begun]:
            self._settled_elsewhere(cell)

    @property
    def all_elsewhere(self) -> bool:
        """Whether other runs held every cell that is left when `lease_next` looked."""
        return 0 < len(self._elsewhere) == len(self.waiting)

    @property
    def holders_live(self) -> bool:
        """Whether the holder of each of these cells has been seen to live."""
        return all(self._folder_leases.is_alive(_name(cell)) for cell in self._elsewhere)

    def holders(self) -> list[str]:
        """Describe the holders of these cells."""
        return sorted({self._folder_leases.holder(_name(cell)) for cell in self._elsewhere})

    def on_event(self, lease: Lease, event: Event) -> None:
        """Note a worker's report about its source and its members; called from any thread."""
        if isinstance(event, SourceReady):
            if not event.shared:
                # Other cells cannot load it either: none needs to wait for it again.
                self._unshared.add(lease.cells[0].source_id)
            lease.release_source()
            self.changed = True
        elif isinstance(event, SharedJob) and event.sharing is Sharing.ALONE:
            # The scheduler's own thread puts the members back.
            lease.alone = True

    def take_back(self) -> None:
        """Put the members that workers have declined among the waiting again."""
        for lease in self._leases:
            if lease.alone:
                for cell, lock in zip(lease.cells[1:], lease.locks[1:], strict=True):
                    self._wait_again(cell)
                    lock.release()
                    self.changed = True
                del lease.cells[1:], lease.locks[1:]

    def end(self, lease: Lease, not_run: Sequence[Cell]) -> None:
        """End a lease; those of its cells that were not run wait again, each for a worker of its own."""
        self.take_back()
        self._leases.remove(lease)
        lease.release()
        self.changed = True
        for cell in not_run:
            if cell in lease.cells:
                self._wait_again(cell)

    def _take(self, name: str) -> SoftFileLease | None:
        return self._folder_leases.take(name)

    def _take_cell(self, cell: Cell) -> SoftFileLease | None:
        return self._take(_name(cell))

    def _lease_members(self, lease: Lease) -> None:
        """Lease cells that may share the worker, but leave enough for every slot."""
        first = lease.cells[0]
        if first.cell_id in self._by_itself or not self._env.may_share_worker(first):
            return
        runnable = [cell for cell in self.waiting if cell.problem is None]
        most = -(-(len(runnable) + 1) // self._slots)
        for cell in runnable:
            if len(lease.cells) >= most:
                return
            if not first.shares_source(cell) or cell.cell_id in self._by_itself:
                continue
            lock = self._take_cell(cell)
            if lock is None:
                continue
            if self._settled_elsewhere(cell):
                lock.release()
                continue
            self.waiting.remove(cell)
            lease.cells.append(cell)
            lease.locks.append(lock)

    def _lease_source(self, lease: Lease) -> bool:
        """Return whether the cell's source is saved, is never shared, or is now this run's to make."""
        cell = lease.cells[0]
        if cell.source_id in self._unshared or self._env.saved_sources([cell]):
            return True
        lease.source = self._take(f"source-{cell.source_id}")
        if lease.source is not None and self._env.saved_sources([cell]):
            lease.release_source()
            return True
        return lease.source is not None

    def _wait_again(self, cell: Cell) -> None:
        self._by_itself.add(cell.cell_id)
        self.waiting.append(cell)
        self.waiting.sort(key=lambda waiting: self._order[id(waiting)])

    def _settled_elsewhere(self, cell: Cell) -> bool:
        """Take over the record that another run has written since this one began, if any."""
        record = self._env.folder.latest(cell.cell_id)
        if record is None or _attempt(record) <= self._attempts[cell.cell_id] or not self._env.accepts(record):
            return False
        self.waiting.remove(cell)
        self._settled(cell, record)
        return True


def _name(cell: Cell) -> str:
    return f"cell-{cell.cell_id}"


def _attempt(record: Record | None) -> int:
    return 0 if record is None else record.attempt
