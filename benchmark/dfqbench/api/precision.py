"""Precisions: how the training loops compute, so that speed is a choice and is printed beside its numbers.

Evaluation, activation ranges, statistics, losses, optimizers and everything that is saved are float32 in each of them.
"""

from __future__ import annotations

from enum import StrEnum


class Precision(StrEnum):
    """How the training loops compute.

    Attributes:
        FLOAT32: the reference path (`--exact`): float32 throughout, every operation as the formula has it.
        FLOAT32_FAST: float32, with sums rearranged where that saves work; equal up to float32's rounding.
        MIXED_BFLOAT16: besides, convolutions of generator and teacher in bfloat16, and those of the student in training
            on the integers of its grids, which bfloat16 holds exactly up to 256.
    """

    FLOAT32 = "float32"
    FLOAT32_FAST = "float32-fast"
    MIXED_BFLOAT16 = "mixed-bfloat16"

    @property
    def rearranges(self) -> bool:
        """Whether sums may be taken in another order than the formula's."""
        return self is not Precision.FLOAT32

    @property
    def bfloat16(self) -> bool:
        """Whether convolutions of training run in bfloat16."""
        return self is Precision.MIXED_BFLOAT16
