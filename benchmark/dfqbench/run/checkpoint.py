"""Checkpoints: the state of an attempt at a step boundary, so that a cell that was interrupted goes on from there."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from dfqbench.run.job import CHECKPOINT_EVERY
from dfqbench.run.tree import TornFileError, read_tree, write_tree

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

    def follow(self, other: Checkpoints, now: Callable[[], float]) -> None:
        """Is due when another cell's are: both count from the same moment.

        Args:
            other: of a cell that runs in step with this one.
            now: seconds that stand still while one step of all cells is under way.
        """
        self._last = other._last
        self._now = now

    @property
    def due(self) -> bool:
        """Whether the last one is old enough."""
        return self._now() - self._last >= self._every

    def write(self, state: Mapping[str, Any]) -> None:
        """Writes a checkpoint and drops all but the newest two.

        Raises:
            PluginError: the state holds what cannot be saved.
            OSError: it cannot be written; the older ones are left as they were.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        files = _files(self.folder)
        number = files[-1][0] + 1 if files else 1
        write_tree(self.folder / f"checkpoint-{number}.safetensors", {"identity": self._identity, "state": dict(state)})
        for _, old in files[: max(0, len(files) + 1 - KEPT)]:
            old.unlink(missing_ok=True)
        self._last = self._now()

    def read(self, device: torch.device, warn: Callable[[str], None]) -> dict[str, Any] | None:
        """The newest checkpoint that can be trusted, or None.

        Args:
            device: where its tensors go.
            warn: is told of every one that had to be passed over.
        """
        for _, path in reversed(_files(self.folder)):
            try:
                content = read_tree(path, device)
            except (TornFileError, FileNotFoundError) as error:
                warn(f"checkpoint {path.name} is passed over: {error}")
                continue
            if not isinstance(content, dict) or not isinstance(content.get("state"), dict):
                warn(f"checkpoint {path.name} is passed over: it holds something else")
                continue
            if content.get("identity") != self._identity:
                warn(f"checkpoint {path.name} is passed over: it was made in another environment")
                continue
            state: dict[str, Any] = content["state"]
            return state
        return None


def _files(folder: Path) -> list[tuple[int, Path]]:
    """Numbers and paths, oldest first."""
    found = [(int(m.group(1)), path) for path in folder.glob("*") if (m := _NAME.fullmatch(path.name))]
    return sorted(found)
