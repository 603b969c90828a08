"""Files of a student's training: snapshots for the oracle, and images of a live source.

They lie in the cell's folder rather than in the attempt's: an attempt that continues from a checkpoint keeps those of
the earlier one. A training is divided into N equal parts; the first snapshot of a part is kept, and of the last part
the last one, which is the student itself.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dfqbench.api.batch import Batch

IMAGES_FILE = "images.safetensors"
"""Images of the finished source, in the attempt's folder."""
TRAINING = "training"
POINTS = 6
"""Points of a training at which images of a live source are kept: the first step, the last, and four between."""
IMAGES_SMALL, IMAGES_LARGE = 32, 8
"""Images kept at a point, for inputs up to 64 pixels and for larger ones."""
SMALL_SIDE = 64

Untimed = Callable[[], AbstractContextManager[object]]
"""Pauses clock and data guard while the host does its own work."""


class TrainingFolder:
    """Files of one cell's training.

    Args:
        attempt: folder of one of the cell's attempts.
    """

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


class Snapshots:
    """Keep a student's states at up to N points of its training.

    Attributes:
        refused: whether a student was offered that only its plugin's code can run.

    Args:
        folder: where states go.
        points: N.
        untimed: entered while a state is written.
    """

    def __init__(self, folder: TrainingFolder, points: int, untimed: Untimed) -> None:
        self.refused = False
        self._folder = folder
        self._points = points
        self._untimed = untimed

    def offer(self, student: nn.Module, step: int, total: int) -> None:
        """Keep the student if its part of the training has none yet.

        Args:
            student: at `step`.
            step: from 1.
            total: steps in all; 0: not known.
        """
        from dfqbench.quant.student import Student

        if not isinstance(student, Student):
            self.refused = True
            return
        part, last = part_of(step, total, self._points), step >= total
        kept = {part_of(step, total, self._points): file for step, file in self._folder.students().items()}
        if (part == self._points) != last or (part in kept and not last):
            return
        with self._untimed():
            if part in kept:
                kept[part].unlink(missing_ok=True)
            self._folder.save("student", step, dict(student.finished_state()))


class Timeline:
    """Keep a few images of a live source at points of its training, evenly spaced.

    They are taken from the batches of the training: no additional images are drawn, so that no number changes.

    Args:
        folder: where images go.
        untimed: entered while they are written.
    """

    def __init__(self, folder: TrainingFolder, untimed: Untimed) -> None:
        self._folder = folder
        self._untimed = untimed
        self._step = 0
        self._points = {1}

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
        with self._untimed():
            tensors = {"images": batch.images[:count].half()}
            if batch.labels is not None:
                tensors["labels"] = batch.labels[:count]
            self._folder.save("images", step, tensors)


def part_of(step: int, total: int, points: int) -> int:
    """Return the part of the training, from 1 to `points`, of a step (from 1); the last where `total` is 0."""
    return points if total <= 0 else min(points, max(1, -(-step * points // total)))
