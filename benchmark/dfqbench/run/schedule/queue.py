"""The queue: cells that are left to run, and leases on them, so that several runs can share one folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from dfqbench.run.execute.events import Event, SharedJob, Sharing, SourceReady
from dfqbench.run.plan.cell import Cell
from dfqbench.run.schedule.run_environment import RunEnvironment
from dfqbench.run.store.record import Record


def try_lock(folder: Path, name: str) -> FileLock | None:
    """Return a lock file's lock, or None where it is held; the operating system releases it when its process ends."""
    folder.mkdir(parents=True, exist_ok=True)
    # Acquired by the scheduler's thread, and released by the one that follows the worker.
    lock = FileLock(folder / f"{name}.lock", thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return None
    return lock


@dataclass(slots=True)
class Lease:
    """The locks on the cells of one job."""

    cells: list[Cell]  # the first cell, and members that may share its worker
    locks: list[FileLock]  # of each of them
    source: FileLock | None = None  # the lock on the source, where the first cell is to make it
    alone: bool = False  # whether the worker has declined the members

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

    Args:
        slots: number of workers at once.
        settled: takes a cell, and its record, that another run has finished meanwhile.
    """

    def __init__(self, env: RunEnvironment, slots: int, settled: Callable[[Cell, Record], None]) -> None:
        self.waiting: list[Cell] = []
        self._env = env
        self._slots = slots
        self._settled = settled
        self._order: dict[int, int] = {}
        self._attempts: dict[str, int] = {}
        self._unshared: set[str] = set()
        self._by_itself: set[str] = set()
        self._leases: list[Lease] = []

    def fill(self, cells: Sequence[Cell]) -> None:
        """Set the cells that are to be run, in the plan's order."""
        self.waiting = list(cells)
        self._order = {id(cell): number for number, cell in enumerate(cells)}
        self._attempts = {cell.cell_id: _attempt(self._env.folder.latest(cell.cell_id)) for cell in cells}

    def remove_earlier(self) -> None:
        """Remove sources and checkpoints, which a fresh run must not use, unless another run uses them."""
        folder = self._env.folder
        for cell in self.waiting:
            for name, path in (
                (f"source-{cell.source_id}", folder.source(cell.source_id)),
                (f"cell-{cell.cell_id}", folder.checkpoints(cell.cell_id)),
            ):
                if path.exists() and (lock := self._try_lock(name)) is not None:
                    shutil.rmtree(path, ignore_errors=True)
                    lock.release()

    @contextmanager
    def lease_free(self, cells: Sequence[Cell]) -> Iterator[list[Cell]]:
        """Lease those of some waiting cells that are free, for the time of the block."""
        locks = {cell.cell_id: lock for cell in cells if (lock := self._try_cell(cell)) is not None}
        try:
            yield [cell for cell in cells if cell.cell_id in locks and not self._settled_elsewhere(cell)]
        finally:
            for lock in locks.values():
                lock.release()

    def lease_next(self) -> Lease | None:
        """Lease the next cell that can begin now; None where other runs have all that are left.

        A cell whose source another cell is making waits for it, while others go on.
        """
        for cell in list(self.waiting):
            if self._settled_elsewhere(cell) or (lock := self._try_cell(cell)) is None:
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

    def on_event(self, lease: Lease, event: Event) -> None:
        """Note a worker's report about its source and its members; called from any thread."""
        if isinstance(event, SourceReady):
            if not event.shared:
                # Other cells cannot load it either: none needs to wait for it again.
                self._unshared.add(lease.cells[0].source_id)
            lease.release_source()
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
                del lease.cells[1:], lease.locks[1:]

    def end(self, lease: Lease, not_run: Sequence[Cell]) -> None:
        """End a lease; those of its cells that were not run wait again, each for a worker of its own."""
        self.take_back()
        self._leases.remove(lease)
        lease.release()
        for cell in not_run:
            if cell in lease.cells:
                self._wait_again(cell)

    def _try_lock(self, name: str) -> FileLock | None:
        return try_lock(self._env.folder.path / "locks", name)

    def _try_cell(self, cell: Cell) -> FileLock | None:
        return self._try_lock(f"cell-{cell.cell_id}")

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
            lock = self._try_cell(cell)
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
        lease.source = self._try_lock(f"source-{cell.source_id}")
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


def _attempt(record: Record | None) -> int:
    return 0 if record is None else record.attempt
