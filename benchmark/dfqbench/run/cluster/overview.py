"""The state of a run by all of its peers: from records, events and SLURM's queue."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dfqbench.run.cluster.peers import Peer, read_peers
from dfqbench.run.cluster.slurm import JobState, SlurmError, queued
from dfqbench.run.cluster.submission import read_submission
from dfqbench.run.plan.estimate import format_seconds
from dfqbench.run.store.files import RECORD
from dfqbench.run.store.run_folder import RunFolder, attempt_names
from dfqbench.run.store.status import FAULTY, SETTLED

DONE = SETTLED | {"skipped", "unavailable"}
"""Statuses of cells of which nothing is left to do."""
EVERYTHING = 60.0
"""Seconds between two looks at the finished cells, which `--retry` may run again."""
MOST_LINES = 20
"""Peers, and failures, that are listed."""


@dataclass(frozen=True, slots=True)
class CellState:
    """The newest record of a cell."""

    status: str
    label: str
    message: str = ""  # of the error


@dataclass(frozen=True, slots=True)
class Overview:
    """The state of a run at a moment."""

    name: str
    total: int | None  # planned cells; None: not known
    cells: Mapping[str, CellState]  # by identity; those with a record
    alive: list[Peer]
    gone: list[Peer]  # that ended without saying so
    queue: Mapping[str, JobState]  # SLURM's jobs that wait or run
    problem: str = ""  # why the queue is not known
    seconds: float | None = None  # expected until the end; None: not known
    submitted: bool = False  # whether jobs were submitted
    now: float = field(default_factory=time.time)

    @property
    def done(self) -> int:
        """Number of cells of which nothing is left to do."""
        return sum(cell.status in DONE for cell in self.cells.values())

    @property
    def failed(self) -> list[CellState]:
        """Cells that ended without a result that counts."""
        return [cell for cell in self.cells.values() if cell.status in FAULTY]

    @property
    def complete(self) -> bool:
        """Whether no cell is left."""
        return self.total is not None and self.done >= self.total

    @property
    def idle(self) -> bool:
        """Whether no peer works and no job waits."""
        return not self.alive and not self.queue

    def lines(self) -> list[str]:
        """Return the state as lines of text."""
        counts = Counter(cell.status for cell in self.cells.values())
        statuses = ", ".join(f"{number} {status}" for status, number in counts.most_common())
        left = f"; about {format_seconds(self.seconds)} left" if self.seconds is not None and not self.complete else ""
        of = "" if self.total is None else f" of {self.total}"
        lines = [f"run {self.name}: {self.done}{of} cells done" + (f" ({statuses})" if statuses else "") + left]
        lines += self._peer_lines()
        if failed := self.failed:
            lines += ["failed:", *(f"  {cell.label}: {cell.status}: {cell.message}" for cell in failed[:MOST_LINES])]
            lines += [f"  and {len(failed) - MOST_LINES} more"] if len(failed) > MOST_LINES else []
        # Messages of plugins may hold anything.
        return ["".join(char if char.isprintable() else " " for char in line) for line in lines]

    def _peer_lines(self) -> list[str]:
        lines = [self.problem] if self.problem else []
        waiting = {job: state for job, state in self.queue.items() if state.state != "RUNNING"}
        if waiting:
            kinds = Counter(f"{state.state}, {state.reason}" for state in waiting.values())
            lines.append("queue: " + "; ".join(f"{number} {kind}" for kind, number in kinds.most_common()))
        at_work = {peer.job for peer in self.alive}
        if starting := sum(job not in at_work for job in self.queue.keys() - waiting.keys()):
            lines.append(f"queue: {starting} RUNNING, without a sign yet")
        if self.alive:
            lines.append(f"{len(self.alive)} peers work:" if len(self.alive) > 1 else "1 peer works:")
            lines += [line for peer in self.alive[:MOST_LINES] for line in self._works(peer)]
            lines += [f"  and {len(self.alive) - MOST_LINES} more"] if len(self.alive) > MOST_LINES else []
        elif self.complete:
            lines.append("complete")
        elif self.idle:
            lines.append("no peer is alive: the same command goes on from here")
            if self.submitted and not self.gone and not self.cells:
                lines.append("no job has begun its work: see slurm/*.log in its folder, or `dfqbench submit --probe`")
        gone = [] if self.complete else self.gone[:MOST_LINES]
        lines += [f"  {_place(peer)} is gone; last sign at {_clock(peer.time)}" for peer in gone]
        return lines

    def _works(self, peer: Peer) -> Iterable[str]:
        if not peer.cells:
            yield f"  {_place(peer)}: between cells"
        for work in peer.cells:
            share = f" {100 * work.step / work.total:.0f} %" if work.total else ""
            spent = format_seconds(max(0.0, self.now - work.since))
            yield f"  {_place(peer)}: {work.label}: {work.phase}{share}, {spent}"


class Watcher:
    """Looks at a run again and again; finished cells are read once a minute only."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._files: dict[Path, CellState | None] = {}
        self._settled: dict[str, CellState] = {}
        self._everything = 0.0

    def look(self) -> Overview:
        """Return the state now."""
        now = time.time()
        peers, submission = read_peers(self._folder.path), read_submission(self._folder.path)
        queue, problem = _queue({*submission.jobs, *(peer.job for peer in peers if peer.job)})
        alive = [peer for peer in peers if peer.is_alive(now, queue)]
        planned = self._planned()
        return Overview(
            self._folder.name,
            submission.cells if planned is None else len(planned),
            self._cells(planned, now),
            alive,
            [peer for peer in peers if peer not in alive and peer.event != "ended"],
            queue or {},
            problem,
            _left(alive),
            bool(submission.jobs),
            now,
        )

    def _planned(self) -> list[str] | None:
        with suppress(OSError, ValueError, LookupError, TypeError):
            plan = json.loads((self._folder.path / "plan.json").read_text(encoding="utf-8"))
            return [str(cell) for cell in plan["cells"]]
        return None

    def _cells(self, planned: Iterable[str] | None, now: float) -> dict[str, CellState]:
        root = self._folder.path / "cells"
        if now - self._everything > EVERYTHING:
            self._everything = now
            self._settled.clear()
        if planned is None:
            planned = sorted(self._folder.begun_cells())
        states = {}
        for cell in planned:
            state = self._settled.get(cell) or self._newest(f"{root}/{cell}")
            if state is not None:
                states[cell] = state
                if state.status in SETTLED:
                    self._settled[cell] = state
        return states

    def _newest(self, cell: str) -> CellState | None:
        for name in reversed(attempt_names(cell)):
            with suppress(OSError, ValueError, LookupError, TypeError, RecursionError):
                return _state(f"{cell}/{name}/{RECORD}")
        return None


def _state(file: str) -> CellState:
    """Return what a record says, unchecked: tables check."""
    with open(file, "rb") as stream:  # noqa: PTH123 - of thousands
        data: dict[str, Any] = json.loads(stream.read())
    place = f"{data.get('target')}/{(data.get('model') or {}).get('name')} {(data.get('scheme') or {}).get('label')}"
    label = f"{data.get('label')} {place} seed {data.get('seed')}"
    return CellState(str(data["status"]), label, str((data.get("error") or {}).get("message", "")))


def _queue(jobs: Iterable[str]) -> tuple[dict[str, JobState] | None, str]:
    """Return SLURM's jobs that wait or run, None where it does not say, and the reason."""
    if not jobs:
        return {}, ""
    try:
        return queued(jobs), ""
    except SlurmError as error:
        return None, f"SLURM's queue is not known: {error.message}"


def _left(alive: list[Peer]) -> float | None:
    """Return the seconds until the end, by the newest peer that knows what is left."""
    known = [peer for peer in alive if peer.left is not None]
    if not known:
        return None
    newest = max(known, key=lambda peer: peer.time)
    return (newest.left or 0.0) / sum(peer.slots for peer in alive)


def _place(peer: Peer) -> str:
    return f"{peer.host} job {peer.job}" if peer.job else f"{peer.host} process {peer.pid}"


def _clock(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
