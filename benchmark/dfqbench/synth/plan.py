"""Training plans: the published epochs of the generator family, laid out in the steps of a budget; free of torch."""

from __future__ import annotations

from dataclasses import dataclass

from dfqbench.api.budget import Budget

SMALL_INPUT = 64
"""Largest image side, in pixels, that takes the CIFAR values of a recipe; larger ones take ImageNet's."""
FEW_CLASSES = 10
"""Most classes for which a recipe's CIFAR-10 values hold, where they differ from CIFAR-100's."""


def is_large(input_size: tuple[int, int, int]) -> bool:
    """Whether images of this size (C, H, W) take a recipe's ImageNet values."""
    return max(input_size[1:]) > SMALL_INPUT


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """Three phases, one after the other, in steps.

    In the released code (methods.md 0.1, 0.2) the activation ranges follow the first 4 epochs, inside a warm-up in
    which only the generator learns. A budget scales warm-up and training; the range phase has a floor of its own,
    because its averages need a number of steps to settle. So it is counted apart (methods.md 0.5).

    Attributes:
        budget: scales the steps.
        epochs: published epochs in all.
        iterations: published steps of an epoch.
        range_epochs: published epochs of the range phase.
        warmup_epochs: published epochs before the student's weights move; the range phase is among them.
    """

    budget: Budget
    epochs: int
    iterations: int
    range_epochs: int
    warmup_epochs: int

    @property
    def range_steps(self) -> int:
        """Steps in which activation ranges follow the batches, weights frozen."""
        return self.budget.range_steps(self.range_epochs * self.iterations)

    @property
    def warmup_steps(self) -> int:
        """Further steps in which only a generator learns."""
        return self.step_of(max(self.warmup_epochs, self.range_epochs)) - self.range_steps

    @property
    def student_start(self) -> int:
        """The step at which the student's weights begin to move."""
        return self.range_steps + self.warmup_steps

    @property
    def total(self) -> int:
        """All steps; at least one of them trains the student's weights."""
        return max(self.step_of(self.epochs), self.student_start + 1)

    @property
    def epoch_steps(self) -> int:
        """Steps that stand for one published epoch after the range phase."""
        return self.budget.training_steps(self.iterations)

    def step_of(self, epoch: int) -> int:
        """The step at which a published epoch (from 0) begins."""
        if epoch <= self.range_epochs:
            return round(self.range_steps * epoch / max(1, self.range_epochs))
        return self.range_steps + self.budget.training_steps((epoch - self.range_epochs) * self.iterations)

    def decays(self, epochs: tuple[int, ...], step: int) -> int:
        """How many of these published epochs have begun at a step (from 0): a rate's number of decays."""
        return sum(step >= self.step_of(epoch) for epoch in epochs)
