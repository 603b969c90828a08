"""Locks on cells and sources, for several runs that work on one folder.

The operating system drops them when their process ends, however it ends.
"""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock, Timeout


class Locks:
    """The locks of one run's folder.

    Args:
        folder: where the lock files lie; they are empty, and stay.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def cell(self, cell_id: str) -> FileLock | None:
        """Takes a cell's lock, or None where somebody has it."""
        return self._taken(f"cell-{cell_id}")

    def source(self, source_id: str) -> FileLock | None:
        """Takes a source's lock, or None where somebody has it."""
        return self._taken(f"source-{source_id}")

    def _taken(self, name: str) -> FileLock | None:
        self._folder.mkdir(parents=True, exist_ok=True)
        # Taken by the thread that chooses cells, and given back by the one that follows the worker.
        lock = FileLock(self._folder / f"{name}.lock", thread_local=False)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return None
        return lock
