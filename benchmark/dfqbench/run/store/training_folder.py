"""Files of a student's training: snapshots for the oracle, and images of a live source.

They lie in the cell's folder rather than in the attempt's: an attempt that continues from a checkpoint keeps those of
the earlier one. A training is divided into N equal parts; the first snapshot of a part is kept, and of the last part
the last one, which is the student itself.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from dfqbench.run.store.files import TRAINING

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dfqbench.api.batch import Batch

POINTS = 6
"""Points of a training at which images of a live source are kept: the first step, the last, and four between."""
IMAGES_SMALL, IMAGES_LARGE = 32, 8
"""Images kept at a point, for inputs up to 64 pixels and for larger ones."""
SMALL_SIDE = 64

Untimed = Callable[[], AbstractContextManager[object]]
"""Pause clock and data guard while the host does its own work."""


class TrainingFolder:
    """Files of one cell's training; `attempt` is the folder of any of its attempts."""

    def __init__(self, attempt: Path) -> None:
        self._path = attempt.parent / TRAINING

    def clear(self) -> None:
        """Remove all files: the training begins anew."""
        shutil.rmtree(self._path, ignore_errors=True)

    def students(self) -> dict[int, Path]:
        """Return the kept students by step, in order."""
        return self._files("student")

    def images(self) -> dict[int, Path]:
        """Return the kept images by step, in order."""
        return self._files("images")

    def drop_students(self) -> None:
        """Remove the students: each is as large as the network, and they are not needed once evaluated."""
        for file in self.students().values():
            file.unlink(missing_ok=True)

    def save(self, prefix: str, step: int, tensors: dict[str, Tensor]) -> None:
        """Write tensors of a step, whole or not at all."""
        from safetensors.torch import save_file

        self._path.mkdir(parents=True, exist_ok=True)
        file = self._path / f"{prefix}-{step}.safetensors"
        temporary = file.with_suffix(".part")
        save_file({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}, temporary)
        temporary.replace(file)

    def _files(self, prefix: str) -> dict[int, Path]:
        steps = {file: file.stem.partition("-")[2] for file in self._path.glob(f"{prefix}-*.safetensors")}
        return dict(sorted((int(step), file) for file, step in steps.items() if step.isdigit()))


@dataclass(slots=True)
class Snapshots:
    """Keep a student's states in at most `points` parts of its training.

    Attributes:
        refused: whether a student was offered that only its plugin's code can run.
    """

    folder: TrainingFolder
    points: int
    untimed: Untimed
    refused: bool = False

    def offer(self, student: nn.Module, step: int, total: int) -> None:
        """Keep the student of `step` (from 1, of `total`; 0: not known) if its part of the training has none yet."""
        from dfqbench.quant.student import Student

        if not isinstance(student, Student):
            self.refused = True
            return
        part, last = part_of(step, total, self.points), step >= total
        kept = {part_of(step, total, self.points): file for step, file in self.folder.students().items()}
        if (part == self.points) != last or (part in kept and not last):
            return
        with self.untimed():
            if part in kept:
                kept[part].unlink(missing_ok=True)
            self.folder.save("student", step, dict(student.finished_state()))


@dataclass(slots=True)
class Timeline:
    """Keep a few images of a live source at points of its training, evenly spaced.

    They are taken from the batches of the training: no additional images are drawn, so that no number changes.
    """

    folder: TrainingFolder
    untimed: Untimed
    _step: int = 0
    _points: set[int] = field(default_factory=lambda: {1})

    def reached(self, step: int, total: int) -> None:
        """Set the number of steps done, of `total` steps."""
        self._step = step
        self._points = {1, *(round(total * part / (POINTS - 1)) for part in range(1, POINTS))}

    def offer(self, batch: Batch) -> None:
        """Keep images of the next step's batch if that step is one of the points."""
        step = self._step + 1
        if step not in self._points:
            return
        count = IMAGES_SMALL if max(batch.images.shape[2:]) <= SMALL_SIDE else IMAGES_LARGE
        with self.untimed():
            labels = {} if batch.labels is None else {"labels": batch.labels[:count]}
            self.folder.save("images", step, {"images": batch.images[:count].half(), **labels})


def part_of(step: int, total: int, points: int) -> int:
    """Return the part of the training, from 1 to `points`, of a step (from 1); the last where `total` is 0."""
    return points if total <= 0 else min(points, max(1, -(-step * points // total)))
