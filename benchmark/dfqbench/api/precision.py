"""Precisions of the training loops, and conversion to float32.

Evaluation, activation ranges, statistics, losses, optimizers and everything that is saved are float32 in each of them.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


class Precision(StrEnum):
    """Precision of the training loops.

    Attributes:
        FLOAT32: the reference (`--exact`): float32 throughout, operations in the order of the formulas.
        FLOAT32_FAST: float32, with sums reordered where that saves work; equal up to rounding.
        MIXED_BFLOAT16: as `FLOAT32_FAST`, with convolutions of generator and teacher in bfloat16, and those of the
            student in training on the integers of its levels, which bfloat16 represents exactly up to 256.
    """

    FLOAT32 = "float32"
    FLOAT32_FAST = "float32-fast"
    MIXED_BFLOAT16 = "mixed-bfloat16"

    @property
    def rearranges(self) -> bool:
        """Whether sums may be computed in another order than that of the formulas."""
        return self is not Precision.FLOAT32

    @property
    def bfloat16(self) -> bool:
        """Whether convolutions in training run in bfloat16."""
        return self is Precision.MIXED_BFLOAT16


def to_float32(x: Tensor) -> Tensor:
    """Return the tensor in float32 if it has fewer bits (autocast gives bfloat16); float64 stays float64."""
    import torch

    return x.to(torch.promote_types(x.dtype, torch.float32))
