"""What is kept of a student's training besides its end: students for the oracle, and images of a live source.

Both lie in the cell's folder rather than in the attempt's, so that an attempt that goes on from another one's state
finds what that one kept. A step belongs to one of N equal parts of the training; the first offer in a part is kept,
and of the last part the last one, which is the student itself.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dfqbench.quant.student import Student
from dfqbench.run.store.files import TRAINING

if TYPE_CHECKING:
    from dfqbench.api.batch import Batch

POINTS = 6
"""Points of training at which images of a live source are kept: the first, the last, and four between."""
IMAGES_SMALL, IMAGES_LARGE = 32, 8
"""Images that are kept of a point, for inputs up to 64 pixels and for larger ones."""
SMALL_SIDE = 64


Aside = Callable[[], AbstractContextManager[object]]
"""Opens the host's own work amid a plugin's call."""


class TrainingFolder:
    """Files of one cell's training.

    Attributes:
        path: the folder; made when something is kept.
    """

    def __init__(self, attempt: Path) -> None:
        self.path = attempt.parent / TRAINING

    def clear(self) -> None:
        """Removes what an earlier attempt kept: this one begins anew."""
        shutil.rmtree(self.path, ignore_errors=True)

    def students(self) -> dict[int, Path]:
        """Kept students by step, in order."""
        return self._files("student")

    def images(self) -> dict[int, Path]:
        """Kept images by step, in order."""
        return self._files("images")

    def drop_students(self) -> None:
        """Removes the students: they are as large as the network, and are no longer needed once evaluated."""
        for file in self.students().values():
            file.unlink(missing_ok=True)

    def save(self, kind: str, step: int, tensors: dict[str, Tensor]) -> Path:
        """Writes tensors under a temporary name and renames them."""
        self.path.mkdir(parents=True, exist_ok=True)
        file = self.path / f"{kind}-{step}.safetensors"
        temporary = file.with_suffix(".part")
        save_file(tensors, temporary)
        temporary.replace(file)
        return file

    def _files(self, kind: str) -> dict[int, Path]:
        found = {
            int(step): file
            for file in self.path.glob(f"{kind}-*.safetensors")
            if (step := file.stem.partition("-")[2]).isdigit()
        }
        return dict(sorted(found.items()))


class Snapshots:
    """Keeps a student's states at up to N points of its training.

    Attributes:
        refused: whether a student came that only its plugin's code can run.
    """

    def __init__(self, folder: TrainingFolder, points: int, aside: Aside) -> None:
        """Keeps nothing yet.

        Args:
            folder: where states go.
            points: N.
            aside: the time within it is the host's own: no phase pays for it.
        """
        self.refused = False
        self._folder = folder
        self._points = points
        self._aside = aside

    def offer(self, student: nn.Module, step: int, total: int) -> None:
        """Keeps the student if its part of the training has none yet.

        Args:
            student: at `step`.
            step: from 1.
            total: steps in all; 0: not known.
        """
        if not isinstance(student, Student):
            self.refused = True
            return
        part, last = part_of(step, total, self._points), step >= total
        kept = {part_of(known, total, self._points): file for known, file in self._folder.students().items()}
        if (part == self._points) != last or (part in kept and not last):
            return
        with self._aside():
            if part in kept:
                kept[part].unlink(missing_ok=True)
            self._folder.save(
                "student", step, {name: _copied(value) for name, value in student.finished_state().items()}
            )


class Timeline:
    """Keeps a few images of a live source at points of its training, evenly spaced.

    They are taken from the batches that are made anyway: nothing is drawn for them, so that no number changes.
    """

    def __init__(self, folder: TrainingFolder, aside: Aside) -> None:
        """Keeps nothing yet; arguments as of `Snapshots`."""
        self._folder = folder
        self._aside = aside
        self._step = 0
        self._wanted = {1}

    def reached(self, step: int, total: int) -> None:
        """Notes that `step` of `total` steps are done."""
        self._step = step
        self._wanted = {1, *(round(total * part / (POINTS - 1)) for part in range(1, POINTS))}

    def offer(self, batch: Batch) -> None:
        """Keeps the batch of the next step if that is one of the points."""
        step = self._step + 1
        if step not in self._wanted:
            return
        images = batch.images
        count = IMAGES_SMALL if max(images.shape[2:]) <= SMALL_SIDE else IMAGES_LARGE
        with self._aside():
            tensors = {"images": _copied(images[:count]).half()}
            if batch.labels is not None:
                tensors["labels"] = _copied(batch.labels[:count])
            self._folder.save("images", step, tensors)


def _copied(tensor: Tensor) -> Tensor:
    """On the CPU, without graph and without sharing memory."""
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def part_of(step: int, total: int, points: int) -> int:
    """The part of the training, from 1 to `points`, that a step (from 1) belongs to; the last where total is 0."""
    return points if total <= 0 else min(points, max(1, -(-step * points // total)))


def load_state(file: Path, device: str) -> dict[str, Tensor]:
    """Reads a kept student's state."""
    found: dict[str, Tensor] = load_file(file, device=device)
    return found
