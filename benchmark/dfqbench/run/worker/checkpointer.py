"""Checkpoints: the state of an attempt at a step boundary, from which an interrupted cell continues."""

from __future__ import annotations

import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from dfqbench.api.errors import PluginError
from dfqbench.run.execute.cancellation import StopFlag, Stopped
from dfqbench.run.execute.events import Phase
from dfqbench.run.store.state_file import TornFileError, read_state, write_state
from dfqbench.run.worker.accounting import Accounting
from dfqbench.run.worker.device_setup import get_rng_state, set_rng_state

KEPT = 2
"""Checkpoints kept: the newest, and the one before in case the newest is torn."""
_NAME = re.compile(r"checkpoint-(\d{1,9})\.safetensors")

State = Callable[[], dict[str, Any]]


class CheckpointFolder:
    """The checkpoints of one cell.

    Args:
        folder: made when the first checkpoint is written.
        environment: identity of the environment; checkpoints of another one are not used.
        every: seconds between two checkpoints.
    """

    def __init__(self, folder: Path, environment: str, every: float) -> None:
        self._folder = folder
        self._identity = {"environment": environment}
        self._every = every
        self._last = time.monotonic()

    @property
    def due(self) -> bool:
        """Whether the last checkpoint is old enough for another one."""
        return time.monotonic() - self._last >= self._every

    def write(self, states: Mapping[str, Any], others: Iterable[CheckpointFolder]) -> None:
        """Write one file with the states of all students of a loop, by scheme, to this and the other cells' folders.

        Raises:
            PluginError: a state holds what cannot be saved.
            OSError: the file cannot be written; older ones are left as they were.
        """
        content = {"identity": self._identity, "state": {"boundary": secrets.token_hex(8), "students": dict(states)}}
        path = self._add(lambda path: write_state(path, content))
        for folder in others:
            folder._add(lambda copy: _link(path, copy))

    def _add(self, write: Callable[[Path], None]) -> Path:
        self._folder.mkdir(parents=True, exist_ok=True)
        files = self._files()
        path = self._folder / f"checkpoint-{files[-1][0] + 1 if files else 1}.safetensors"
        write(path)
        for _, old in self._files()[:-KEPT]:
            old.unlink(missing_ok=True)
        self._last = time.monotonic()
        return path

    def read(self, student: str, device: torch.device, warn: Callable[[str], None]) -> dict[str, Any] | None:
        """Return the state of a student, by its scheme, in the newest valid checkpoint, or None.

        Its key `boundary` is the same for all students that were saved together.
        """
        for _, path in reversed(self._files()):
            try:
                return self._state(read_state(path, device), student)
            except (TornFileError, FileNotFoundError, ValueError) as error:
                warn(f"checkpoint {path.name} is passed over: {error}")
        return None

    def _state(self, content: Any, student: str) -> dict[str, Any]:
        try:
            boundary, state = content["state"]["boundary"], dict(content["state"]["students"][student])
        except (KeyError, TypeError, ValueError):
            raise ValueError("it holds something else") from None
        if content.get("identity") != self._identity:
            raise ValueError("it was made in another environment")
        return state | {"boundary": boundary}

    def _files(self) -> list[tuple[int, Path]]:
        """Numbers and paths, oldest first."""
        paths = self._folder.glob("*")
        return sorted((int(match.group(1)), path) for path in paths if (match := _NAME.fullmatch(path.name)))


def _link(path: Path, copy: Path) -> None:
    try:
        copy.hardlink_to(path)
    except OSError:
        shutil.copyfile(path, copy)


@dataclass(slots=True)
class _StepBoundary:
    """The step boundary of all students of one loop: their states are saved in one file, or not at all."""

    flag: StopFlag
    folders: dict[str, CheckpointFolder | None]
    """Of the students that still train, by scheme; None: no checkpoints are kept."""
    states: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Of the students that have reached the current boundary."""
    reached: set[str] = field(default_factory=set)
    stopping: bool = False
    saves: bool = False

    def reach(self, student: str) -> None:
        """Let a student reach the boundary; the first of a step decides for all whether to stop and to save."""
        if not self.reached or student in self.reached:
            self.reached, self.states = set(), {}
            self.stopping = self.flag.requested
            folder = self.folders[student]
            self.saves = folder is not None and (self.stopping or folder.due)
        self.reached.add(student)

    @property
    def complete(self) -> bool:
        return self.reached >= self.folders.keys()

    def write(self) -> None:
        first, *others = [folder for student in self.states if (folder := self.folders[student]) is not None]
        first.write(self.states, others)


class Checkpointer:
    """Write the checkpoints of one attempt, restore the one that it continues from, and stop it when requested.

    Args:
        folder: where checkpoints go; None: none are kept.
        flag: whether to stop.
        accounting: of the attempt.
        student: the student's scheme.
        warn: receives messages about checkpoints that cannot be written or read.
    """

    def __init__(
        self,
        folder: CheckpointFolder | None,
        flag: StopFlag,
        accounting: Accounting,
        *,
        student: str,
        warn: Callable[[str], None],
    ) -> None:
        self._folder = folder
        self._flag = flag
        self._accounting = accounting
        self._student = student
        self._warn = warn
        self._boundary = _StepBoundary(flag, {student: folder})
        self._phase = Phase.SETUP
        # The checkpoint that the attempt continues from, and the last state of the synthesis, kept beside later ones.
        self._saved: dict[str, Any] | None = None
        self._synthesis: dict[str, Any] | None = None
        self._saved_synthesis = False

    def join(self, first: Checkpointer) -> bool:
        """Save states together with the first attempt, which alone reads the stop flag; return as `Attempt.join`."""
        self._flag = StopFlag()
        self._boundary = first._boundary
        self._boundary.folders[self._student] = self._folder
        self._synthesis = first._synthesis
        return self._restored_boundary() == first._restored_boundary()

    def leave(self) -> None:
        """Leave the boundaries of the other students."""
        self._boundary.folders.pop(self._student, None)
        self._boundary.states.pop(self._student, None)

    def _restored_boundary(self) -> str | None:
        """The boundary that the quantization continues from, or None."""
        saved = self._saved
        return saved["boundary"] if saved is not None and saved["phase"] == Phase.QUANTIZATION else None

    def load(self, device: torch.device) -> None:
        """Read the checkpoint to continue from, if there is one."""
        if self._folder is not None:
            self._saved = self._folder.read(self._student, device, self._warn)

    def enter(self, phase: Phase) -> None:
        """Begin a phase; an attempt that was requested to stop ends here, between two phases."""
        self._phase = phase
        self.stop_without_state()

    def stop_without_state(self) -> None:
        """End the attempt if that was requested, without saving a state."""
        if self._flag.requested:
            raise Stopped(kept=False)

    def restore(self) -> Mapping[str, Any] | None:
        """Restore the random generators and the accounting where the current phase continues.

        Returns:
            The states of `plugin` and `context`; None: the phase begins anew.
        """
        saved = self._saved
        if saved is None:
            return None
        if saved["phase"] == self._phase:
            self._accounting.restore(saved["account"])
        elif self._phase is Phase.SYNTHESIS and saved["synthesis"] is not None:
            # A source that still learned when the attempt ended: only its synthesis is repeated, from its own state.
            saved = saved["synthesis"]
        else:
            return None
        set_rng_state(saved["rng"])
        return saved

    def keep_synthesis(self, device: torch.device) -> None:
        """Keep the synthesis' last state beside those of the quantization, for a source that is not saved itself."""
        if self._saved is not None and self._saved["phase"] != Phase.SYNTHESIS:
            self._synthesis = self._saved["synthesis"]
        elif self._folder is not None and (self._saved_synthesis or self._saved is not None):
            saved = self._folder.read(self._student, device, self._warn)
            if saved is not None and saved["phase"] == Phase.SYNTHESIS:
                self._synthesis = {key: saved[key] for key in ("plugin", "context", "rng")}

    def boundary(self, state: State) -> None:
        """Save the states of `plugin` and `context` where that is due, and end the loop if that was requested.

        The last student of a step writes all states.

        Raises:
            Stopped: a stop was requested.
        """
        boundary = self._boundary
        boundary.reach(self._student)
        kept = False
        if boundary.saves:
            with self._accounting.clock.paused():
                boundary.states[self._student] = self._state(state)
                kept = boundary.complete and self._write()
        if boundary.complete and boundary.stopping:
            raise Stopped(kept)

    def _state(self, state: State) -> dict[str, Any]:
        rng = get_rng_state()
        try:
            return {
                "phase": str(self._phase),
                **state(),
                "rng": rng,
                "account": self._accounting.checkpoint(self._phase),
                "synthesis": self._synthesis,
            }
        finally:
            # Random numbers that the plugin's `state` has drawn do not count.
            set_rng_state(rng)

    def _write(self) -> bool:
        try:
            with self._accounting.untimed():
                self._boundary.write()
        except (OSError, PluginError) as error:
            # The result can still be had; only an interruption would cost more.
            self._warn(f"no checkpoint could be written: {error}")
            return False
        self._saved_synthesis = self._saved_synthesis or self._phase is Phase.SYNTHESIS
        return True
