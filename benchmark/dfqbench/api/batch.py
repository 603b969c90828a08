"""Batches of images, and the sources that they are drawn from."""

from __future__ import annotations

from collections.abc import Sized
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeGuard, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Batch:
    """Images for a quantizer.

    Attributes:
        images: (N, C, H, W), float32, in the teacher's normalised input space, detached.
        labels: int64 (N,), or soft float (N, classes), or None: use the teacher's argmax.
        teacher_logits: (N, classes) where the source has computed them, or None.
    """

    images: Tensor
    labels: Tensor | None = None
    teacher_logits: Tensor | None = None

    def first(self, size: int) -> Batch:
        """Return the first `size` images, or all if there are fewer."""
        labels = None if self.labels is None else self.labels[:size]
        logits = None if self.teacher_logits is None else self.teacher_logits[:size]
        return Batch(self.images[:size], labels, logits)


@runtime_checkable
class SampleSource(Protocol):
    """A source of images for a quantizer. Sampling trains nothing and changes no buffer."""

    def sample(self, size: int) -> Batch:
        """Draw `size` images."""

    def state_dict(self) -> dict[str, Any]:
        """Return all that is needed to continue bit for bit: tensors, numbers, strings and containers of these."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""


@runtime_checkable
class LiveSource(SampleSource, Protocol):
    """A source with a generator that is trained together with the student.

    Size of the batch and number of steps are the source's own, under every recipe. A quantizer with fewer steps first
    trains the generator alone, and a smaller batch is a part of the generator's.

    If no loss of the source uses the student, set the attribute `needs_student = False`: one generator can then serve
    the students of several bit-widths in one loop, and `train_step` is called without a student.

    Attributes:
        batch_size: images of a training step.
        training_steps: steps of the whole training, under the budget of the cell.
    """

    batch_size: int
    training_steps: int

    def train_step(self, size: int, student: nn.Module | None = None) -> Batch:
        """Update the generator once and return the batch generated *before* the update.

        Args:
            size: images in the batch.
            student: the student, for losses that use it; None switches these losses off.
        """


def has_images(source: SampleSource) -> bool:
    """Return whether images can be drawn from a source: not from one of length 0, such as `none`."""
    return not isinstance(source, Sized) or len(source) > 0


def is_live(source: SampleSource) -> TypeGuard[LiveSource]:
    """Return whether the source is still trained (has `train_step`)."""
    return callable(getattr(source, "train_step", None))


def serves_many(source: SampleSource) -> bool:
    """Return whether one live source can serve several students: none of its losses uses a student."""
    return is_live(source) and getattr(source, "needs_student", True) is False and not hasattr(source, "__len__")
