"""The phases of a training in steps; free of torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dfqbench.api.budget import Budget

if TYPE_CHECKING:
    from dfqbench.api import Context
    from dfqbench.synth.params import GeneratorParams


@dataclass(frozen=True, slots=True)
class TrainingSchedule:
    """Steps of the range phase, of the rest of the warm-up, and of the student's training, in this order.

    In the released code (methods.md 0.1, 0.2) the activation ranges follow the first 4 epochs of a warm-up in which
    only the generator learns. A budget scales warm-up and training; the range phase has a minimum length, in which its
    averages settle (methods.md 0.5).

    Attributes:
        budget: scales the steps.
        epochs: published epochs in all.
        iterations: published steps of an epoch.
        range_epochs: published epochs of the range phase.
        warmup_epochs: published epochs before the student's weights move, range phase included.
    """

    budget: Budget
    epochs: int
    iterations: int
    range_epochs: int
    warmup_epochs: int

    @property
    def range_steps(self) -> int:
        """Steps in which activation ranges follow the batches, with frozen weights."""
        return self.budget.range_steps(self.range_epochs * self.iterations)

    @property
    def student_start(self) -> int:
        """First step that trains the student's weights."""
        return self.step_of(max(self.warmup_epochs, self.range_epochs))

    @property
    def total(self) -> int:
        """All steps; at least one of them trains the student's weights."""
        return max(self.step_of(self.epochs), self.student_start + 1)

    @property
    def epoch_steps(self) -> int:
        """Steps that stand for one published epoch after the range phase."""
        return self.budget.training_steps(self.iterations)

    def step_of(self, epoch: int) -> int:
        """Return the step at which a published epoch (from 0) begins."""
        if epoch <= self.range_epochs:
            return round(self.range_steps * epoch / max(1, self.range_epochs))
        return self.range_steps + self.budget.training_steps((epoch - self.range_epochs) * self.iterations)

    def decays(self, epochs: tuple[int, ...], step: int) -> int:
        """Return how many of these published epochs have begun at a step (from 0): the rate's number of decays."""
        return sum(step >= self.step_of(epoch) for epoch in epochs)


def generator_schedule(ctx: Context, params: GeneratorParams) -> TrainingSchedule:
    """Return the schedule of a generator, which learns in all steps and has no warm-up."""
    return TrainingSchedule(ctx.budget, params.epochs, params.iterations, params.range_epochs, params.range_epochs)
