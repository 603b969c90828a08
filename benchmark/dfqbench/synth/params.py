"""Hyper-parameters of the generator family, and their schedule in steps; free of torch, so that plugins can derive."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from dfqbench.api import param
from dfqbench.api.budget import Budget

GDFQ = "released code (GDFQ)"
"""Source of most values of the family."""
TEMPORAL = "inferred: methods.md 6, no released code"
"""Source of the temporal-diversity method's constants."""


@dataclass(frozen=True)
class GeneratorParams:
    """A conditional generator and its training, as GDFQ's; every ingredient has a weight that switches it off."""

    architecture: Literal["auto", "cifar", "imagenet"] = param(
        "auto",
        help="GDFQ's generator: label embedding (`cifar`) or class-conditional BatchNorm (`imagenet`); auto: by input "
        "size, up to 64 pixels `cifar`",
        source=GDFQ,
    )
    latent: PositiveInt = param(100, help="size of the latent vector", source=GDFQ)
    lr: PositiveFloat = param(1e-3, help="learning rate of Adam on the generator", source=GDFQ)
    beta1: NonNegativeFloat = param(0.5, help="Adam's decay of the first moment", source=GDFQ)
    beta2: NonNegativeFloat = param(0.999, help="Adam's decay of the second moment", source=GDFQ)
    epochs: PositiveInt = param(400, help="epochs in all, before the budget", source=GDFQ, unit="epochs")
    iterations: PositiveInt = param(200, help="generator steps of an epoch", source=GDFQ, unit="steps")
    lr_steps: tuple[int, ...] = param(
        (100, 200, 300), help="epochs at which the learning rate decays", source=GDFQ, unit="epochs"
    )
    lr_factor: PositiveFloat = param(0.1, help="factor of each decay", source=GDFQ)
    range_epochs: NonNegativeInt = param(
        4, help="epochs in which a quantizer builds ranges; they only place `lr_steps`", source=GDFQ, unit="epochs"
    )
    ce_weight: NonNegativeFloat = param(
        1.0, help="weight of the teacher's cross-entropy against the label; 0: off", source=GDFQ
    )
    bns_weight: NonNegativeFloat = param(0.1, help="weight of the BatchNorm-statistics loss; 0: off", source=GDFQ)
    input_target: Literal["card", "released"] = param(
        "card",
        help="mean and deviation of the generator's output: those of natural images under the card's normalisation, "
        "or 0 and 1 as released",
        source="released code (GDFQ) where the card is ImageNet's; else inferred",
    )
    augment_share: NonNegativeFloat = param(
        0.0, help="share of batches that are cropped and flipped before teacher and student; 0: off", source=GDFQ
    )
    augment_scale: PositiveFloat = param(
        0.8, help="smallest share of the area that a crop keeps", source="released code (ClusterQ)"
    )
    margin_weight: NonNegativeFloat = param(
        0.0, help="weight of the Gaussian-margin adversarial loss through the student; 0: off", source=TEMPORAL
    )
    margin_start: NonNegativeInt = param(
        4, help="epoch from which it is on, inputs up to 64 pixels", source=f"{TEMPORAL}: after warm-up", unit="epochs"
    )
    margin_start_large: NonNegativeInt = param(
        50, help="the same for larger inputs", source=f"{TEMPORAL}: after warm-up", unit="epochs"
    )
    margin_mean: float = param(0.5, help="mean of the margin", source=TEMPORAL)
    margin_std: PositiveFloat = param(0.15, help="standard deviation of the margin", source=TEMPORAL)
    margin_form: Literal["sampled", "expected"] = param(
        "sampled", help="a margin drawn for each image, or the closed form of its expectation", source=TEMPORAL
    )
    margin_distance: Literal["logits", "probabilities"] = param(
        "logits", help="what is compared: logits relative to the teacher's, or softmax outputs", source=TEMPORAL
    )


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
