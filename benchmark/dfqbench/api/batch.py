"""What flows between the two halves of a method: batches, and the sources that they are drawn from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeGuard, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Batch:
    """Images for a quantizer.

    Attributes:
        images: (N, C, H, W), float32, in the teacher's normalised input space, without a graph.
        labels: int64 (N,), or soft float (N, classes), or None: the teacher's argmax serves.
        teacher_logits: (N, classes), where the source already paid for them, or None.
    """

    images: Tensor
    labels: Tensor | None = None
    teacher_logits: Tensor | None = None


@runtime_checkable
class SampleSource(Protocol):
    """Where a quantizer gets images. Drawing never learns and changes no buffer."""

    def sample(self, size: int) -> Batch:
        """Draws `size` images."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on bit for bit; tensors, numbers, strings and containers of these."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        ...


@runtime_checkable
class LiveSource(SampleSource, Protocol):
    """A source with a generator that still learns while the student trains.

    A source whose losses never look at the student may have an attribute `needs_student` that is False: one generator
    then feeds the students of several bit-widths in one loop, and `train_step` is called without a student.
    """

    def train_step(self, size: int, student: nn.Module | None = None) -> Batch:
        """Updates the generator once and returns the batch made *before* the update.

        Args:
            size: images in the batch.
            student: the student, where a loss looks at it; None switches such losses off.
        """
        ...


def is_live(source: SampleSource) -> TypeGuard[LiveSource]:
    """Whether the source still learns (has `train_step`)."""
    return callable(getattr(source, "train_step", None))


def serves_many(source: SampleSource) -> bool:
    """Whether a live source says that it never looks at a student, so that one serves several."""
    return is_live(source) and getattr(source, "needs_student", True) is False and not hasattr(source, "__len__")
