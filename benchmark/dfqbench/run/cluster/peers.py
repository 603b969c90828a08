"""Events of the processes (peers) that share a run: each appends to a file of its own, `<run>/peers/*.jsonl`.

A line is one event with the peer's whole state, so that readers need the last whole line of each file only.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from dfqbench.run.execute.events import Event, Phase, PhaseStarted, Progress, SharedJob, Sharing

PEERS = "peers"
"""Folder of these files in a run's."""
BEAT, SILENT = 5.0, 120.0
"""Seconds between two lines of a peer that makes steps, and without a line after which it counts as gone."""
_QUIET_BEATS = 6
"""Beats between two lines of a peer of which there is nothing new."""
_TAIL = 2**16
"""Bytes at the end of a file in which the last line is looked for."""


@dataclass(frozen=True, slots=True)
class Underway:
    """Work of a peer: a cell, or the cells of one job."""

    label: str
    since: float  # Unix time of its begin
    phase: str = Phase.SETUP.value
    step: int = 0  # of the phase; 0: none was reported
    total: int = 0  # steps of the phase


@dataclass(frozen=True, slots=True)
class Peer:
    """The state of a peer at its last event."""

    event: str  # `began`, `cell`, `phase`, `record`, `alive` or `ended`
    time: float  # Unix time
    host: str
    pid: int
    job: str = ""  # SLURM's `<job>_<task>` or `<job>`; empty: none
    slots: int = 1  # jobs that it runs at once
    left: float | None = None  # expected seconds of all cells that are left, in one slot; None: not known
    message: str = ""  # of `record`: status and label
    cells: tuple[Underway, ...] = ()

    def is_alive(self, now: float, jobs: Mapping[str, object] | None) -> bool:
        """Check whether the peer works.

        Args:
            now: Unix time.
            jobs: those of SLURM that wait or run, by id; None: not known.
        """
        if self.event == "ended" or (self.job and jobs is not None and self.job not in jobs):
            return False
        return now - self.time <= SILENT and (self.host != socket.gethostname() or Path(f"/proc/{self.pid}").exists())


def job_id(environment: Mapping[str, str] = os.environ) -> str:
    """Return the id of the SLURM job that this process is part of, as `squeue` prints it; empty outside of one."""
    array = environment.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{environment['SLURM_ARRAY_TASK_ID']}" if array else environment.get("SLURM_JOB_ID", "")


def read_peers(run: Path) -> list[Peer]:
    """Return the last state of every peer of a run, by the name of its file; files without a whole line are left out.

    Files are opened anew each time, since another machine's additions may not show in an open file.
    """
    return [peer for file in sorted((run / PEERS).glob("*.jsonl")) if (peer := _last(file)) is not None]


def _last(file: Path) -> Peer | None:
    from pydantic import TypeAdapter, ValidationError

    with contextlib.suppress(OSError), file.open("rb") as stream:
        stream.seek(max(0, stream.seek(0, os.SEEK_END) - _TAIL))
        # What follows the last line break is not written completely yet.
        for line in reversed(stream.read().rpartition(b"\n")[0].splitlines()):
            with contextlib.suppress(ValidationError):
                return TypeAdapter(Peer).validate_json(line)
    return None


class PeerLog:
    """Appends this process's events; use it in a `with` block.

    A file that cannot be written is given up: events are for people, and no run ends for their sake.

    Args:
        run: the run's folder.
        slots: jobs at once.
        left: expected seconds of all cells in one slot, or None.
    """

    def __init__(self, run: Path, slots: int, left: float | None) -> None:
        self._state = Peer("began", time.time(), socket.gethostname(), os.getpid(), job_id(), slots, left)
        # Only the elements of an array are sure to be one process each.
        name = self._state.job if "_" in self._state.job else f"{self._state.host}-{self._state.pid}"
        self._path = run / PEERS / f"{name}.jsonl"
        self._cells: dict[object, Underway] = {}
        self._written: tuple[Underway, ...] = ()
        self._lock = threading.Lock()
        self._end = threading.Event()
        self._stream: BinaryIO | None = None

    def __enter__(self) -> Self:
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._stream = self._path.open("ab", buffering=0)
            if self._stream.tell():
                # A killed process may have left half a line.
                self._stream.write(b"\n")
        self._write("began")
        threading.Thread(target=self._beat, name="peer log", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self._cells.clear()
        self._write("ended")
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def begin(self, key: object, label: str) -> None:
        """Report that work is begun; `key` names it from then on."""
        self._cells[key] = Underway(label, time.time())
        self._write("cell")

    def event(self, key: object, event: Event) -> None:
        """Take a worker's event; called from any thread."""
        work = self._cells.get(key)
        if work is None:
            return
        match event:
            case PhaseStarted(phase):
                self._cells[key] = replace(work, phase=phase.value, step=0, total=0)
                self._write("phase")
            case Progress(phase, step, total):
                # The next beat writes it.
                self._cells[key] = replace(work, phase=phase.value, step=step, total=total)
            case SharedJob(sharing, members) if sharing is not Sharing.ALONE:
                self._cells[key] = replace(work, label=f"{work.label} and {members} more")

    def end(self, key: object) -> None:
        """Report that work has ended."""
        self._cells.pop(key, None)

    def record(self, message: str, left: float | None) -> None:
        """Report a finished cell, and the expected seconds of all that are left in this peer's slots, if known."""
        self._state = replace(self._state, left=None if left is None else left * self._state.slots)
        self._write("record", message)

    def _beat(self) -> None:
        quiet = 0
        while not self._end.wait(BEAT):
            quiet += 1
            if quiet >= _QUIET_BEATS or tuple(self._cells.values()) != self._written:
                quiet = 0
                self._write("alive")

    def _write(self, event: str, message: str = "") -> None:
        with self._lock:
            if self._stream is None:
                return
            self._written = tuple(self._cells.values())
            state = replace(self._state, event=event, time=time.time(), message=message, cells=self._written)
            try:
                self._stream.write(json.dumps(asdict(state)).encode() + b"\n")
            except OSError:
                self._stream = None
