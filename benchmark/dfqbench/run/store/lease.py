"""Leases: files by which the runs on one folder share its cells, on any file system.

The holder of a lease refreshes its file; one that is no longer refreshed is taken over. Locks of the operating system
do not serve: many parallel file systems ignore them, and two runs would compute every cell twice.
"""

from __future__ import annotations

import secrets
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import LeaseSettingsMismatch, SoftFileLease, Timeout

from dfqbench.api.errors import UsageError

LEASE_SECONDS = 120.0
"""A lease is taken over after so long without a heartbeat, and at once if its process on this machine has ended."""
HEARTBEATS = 6
"""Heartbeats in that time."""
PATIENCE = 1.25
"""Leases after which an unchanged file is removed that filelock does not take over: an empty one, left by a machine
that lost power, and any on a file system that cannot exchange two names (NFS)."""
SECOND_LOOK = 1.0
"""Seconds until a lost lease is confirmed: another run that tries to take it over may put it back."""


@dataclass(slots=True)
class _Contended:
    """A lease that another run holds, as seen from here."""

    lease: SoftFileLease  # it notes since when the file has not changed
    mark: tuple[int, int] | None = None  # inode and time of the last heartbeat
    since: float = 0.0  # monotonic clock when this mark was first seen
    alive: bool = False  # whether a heartbeat was seen


class Leases:
    """The leases of one folder, as one run sees them; used by one thread.

    Args:
        folder: filelock makes it.
        seconds: without a heartbeat until a lease is taken over; every run on the folder must use the same.
    """

    def __init__(self, folder: Path, seconds: float = LEASE_SECONDS) -> None:
        self.seconds = seconds
        self._folder = folder
        self._contended: dict[str, _Contended] = {}

    def take(self, name: str) -> SoftFileLease | None:
        """Take a lease, or return None while another run, or another part of this one, holds it.

        Raises:
            UsageError: another run uses leases of another length.
            OSError: the folder cannot be written.
        """
        seen = self._contended.get(name) or _Contended(self._lease(name))
        if not _try(seen.lease) and not (self._is_abandoned(seen) and _try(seen.lease)):
            self._contended[name] = seen
            return None
        self._contended.pop(name, None)
        return seen.lease

    def is_alive(self, name: str) -> bool:
        """Check that the holder of a lease that could not be taken has refreshed it since the first try."""
        return name in self._contended and self._contended[name].alive

    def holder(self, name: str) -> str:
        """Describe the holder of a lease."""
        owner = self._lease(name).owner
        return "an unknown process" if owner is None else f"process {owner.pid} on {owner.hostname.partition('?')[0]}"

    def _lease(self, name: str) -> SoftFileLease:
        path, heartbeat = self._folder / f"{name}.lease", self.seconds / HEARTBEATS
        # The scheduler's thread acquires it, and the one that follows the worker may release it.
        return SoftFileLease(path, lease_duration=self.seconds, heartbeat_interval=heartbeat, thread_local=False)

    def _is_abandoned(self, seen: _Contended) -> bool:
        """Note whether a held lease was refreshed; return whether it was removed, or was released meanwhile."""
        path = Path(seen.lease.lock_file)
        try:
            mark = _mark(path)
        except FileNotFoundError:
            return True
        now = time.monotonic()
        if mark != seen.mark:
            # The inode of the same holder stays.
            seen.alive = seen.mark is not None and mark[0] == seen.mark[0]
            seen.mark, seen.since = mark, now
        elif now - seen.since >= PATIENCE * self.seconds:
            return _remove(path, mark)
        elif now - seen.since >= self.seconds / 2:
            seen.alive = False
        return False


def is_held(file: str, token: str) -> bool:
    """Check that no other run has this lease: a process that is suspended for longer loses it.

    A file that is missing was removed by hand, by plugin code, or by a run that has taken the cell over and finished
    it, whose record is there.
    """
    if _is_ours(file, token):
        return True
    time.sleep(SECOND_LOOK)
    return _is_ours(file, token)


def _is_ours(file: str, token: str) -> bool:
    try:
        return token in Path(file).read_text(encoding="utf-8", errors="replace")
    except OSError:
        # A file system that fails says nothing about the lease.
        return True


def _try(lease: SoftFileLease) -> bool:
    try:
        lease.acquire(timeout=0)
    except Timeout:
        return False
    except LeaseSettingsMismatch as error:
        hint = "use the same version of dfqbench for all, or wait until the others have ended"
        raise UsageError(f"another run on this folder has leases of another length: {error}", hint) from error
    return True


def _mark(path: Path) -> tuple[int, int]:
    facts = path.lstat()
    return facts.st_ino, facts.st_mtime_ns


def _remove(path: Path, mark: tuple[int, int]) -> bool:
    """Remove a lease's file, unless it has changed; return whether that was done."""
    aside = path.with_name(f"{path.name}.{secrets.token_hex(4)}.aside")
    with suppress(OSError):
        path.rename(aside)
        unchanged = _mark(aside) == mark
        if not unchanged:
            # Another run was faster: it gets its lease back.
            path.hardlink_to(aside)
        aside.unlink()
        return unchanged
    return False
