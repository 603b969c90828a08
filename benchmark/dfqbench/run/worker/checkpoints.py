"""Checkpoints: the state of an attempt at a step boundary, so that a cell that was interrupted goes on from there."""

from __future__ import annotations

import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from dfqbench.run.execute.job import CHECKPOINT_EVERY
from dfqbench.run.store.state_file import TornFileError, read_state, write_state

KEPT = 2
"""Checkpoints kept: the newest, and the one before in case the newest is torn."""
FOLDER = "checkpoints"
_NAME = re.compile(r"checkpoint-(\d{1,9})\.safetensors")


class Checkpoints:
    """The checkpoints of one cell.

    Args:
        folder: of the cell's checkpoints; made when the first is written.
        identity: what a checkpoint must have been made with to be gone on from (cell, environment).
        every: seconds between two.
        now: monotonic seconds.
    """

    def __init__(
        self,
        folder: Path,
        identity: Mapping[str, str],
        every: float = CHECKPOINT_EVERY,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.folder = folder
        self._identity = dict(identity)
        self._every = every
        self._now = now
        self._last = now()

    @property
    def due(self) -> bool:
        """Whether the last one is old enough."""
        return self._now() - self._last >= self._every

    def write(self, students: Mapping[str, Mapping[str, Any]], others: Iterable[Checkpoints] = ()) -> None:
        """Writes one file with the states of all students of a loop, and drops all but the newest two.

        Args:
            students: each student's state, by its scheme.
            others: checkpoints of the other students' cells, which get the same file.

        Raises:
            PluginError: a state holds what cannot be saved.
            OSError: it cannot be written; the older ones are left as they were.
        """
        path = self._next()
        state = {"boundary": secrets.token_hex(8), "students": dict(students)}
        write_state(path, {"identity": self._identity, "state": state})
        self._drop_old()
        self._last = self._now()
        for other in others:
            place = other._next()
            try:
                place.hardlink_to(path)
            except OSError:
                shutil.copyfile(path, place)
            other._drop_old()
            other._last = self._last

    def _next(self) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        files = _files(self.folder)
        return self.folder / f"checkpoint-{files[-1][0] + 1 if files else 1}.safetensors"

    def _drop_old(self) -> None:
        for _, old in _files(self.folder)[:-KEPT]:
            old.unlink(missing_ok=True)

    def read(self, student: str, device: torch.device, warn: Callable[[str], None]) -> dict[str, Any] | None:
        """Return one student's state in the newest checkpoint that can be trusted, or None.

        Its key `boundary` is the same for all students that were kept together.

        Args:
            student: its scheme.
            device: where its tensors go.
            warn: takes a message for each checkpoint that had to be passed over.
        """
        for _, path in reversed(_files(self.folder)):
            try:
                content = read_state(path, device)
            except (TornFileError, FileNotFoundError) as error:
                warn(f"checkpoint {path.name} is passed over: {error}")
                continue
            state = content.get("state") if isinstance(content, dict) else None
            students = state.get("students") if isinstance(state, dict) else None
            if not isinstance(state, dict) or not isinstance(students, dict) or student not in students:
                warn(f"checkpoint {path.name} is passed over: it holds something else")
                continue
            if content.get("identity") != self._identity:
                warn(f"checkpoint {path.name} is passed over: it was made in another environment")
                continue
            return {**students[student], "boundary": state["boundary"]}
        return None


def _files(folder: Path) -> list[tuple[int, Path]]:
    """Numbers and paths, oldest first."""
    found = [(int(m.group(1)), path) for path in folder.glob("*") if (m := _NAME.fullmatch(path.name))]
    return sorted(found)
