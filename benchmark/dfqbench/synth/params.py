"""Hyper-parameters of a GDFQ-based generator; free of torch, so that plugins can derive from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from dfqbench.api import ModelCard, param

GDFQ = "released code (GDFQ)"
"""Source of most values."""
TEMPORAL = "inferred: methods.md 6, no released code"
"""Source of the temporal-diversity method's constants."""
UnitFloat = Annotated[float, Field(ge=0, le=1)]
"""A number from 0 to 1."""


@dataclass(frozen=True)
class GeneratorParams:
    """GDFQ's conditional generator and its training; a weight of 0 switches a loss off."""

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
    batch: PositiveInt = param(200, help="images of a generator step", source=GDFQ, unit="images")
    batch_few_classes: PositiveInt = param(
        200,
        help="the same for inputs up to 64 pixels and at most ten classes",
        source="inferred: GDFQ's CIFAR-100 value",
        unit="images",
    )
    batch_large: PositiveInt = param(16, help="the same for larger inputs", source=GDFQ, unit="images")
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
        help="mean and deviation of the generator's output: those of the domain under the card's normalisation, "
        "or 0 and 1 as released",
        source="released code (GDFQ) where the card normalises with its domain's; else inferred",
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
    margin_mean: NonNegativeFloat = param(0.5, help="mean of the margin", source=TEMPORAL)
    margin_std: PositiveFloat = param(0.15, help="standard deviation of the margin", source=TEMPORAL)
    margin_form: Literal["sampled", "expected", "erf"] = param(
        "sampled",
        help="a margin drawn for each image, the closed form of its expectation, or a loss whose derivative is a "
        "Gaussian about 0 of width `margin_std`",
        source=TEMPORAL,
    )
    margin_scale: Literal["fixed", "running"] = param(
        "fixed",
        help="margins N(`margin_mean`, `margin_std`^2), or N(d + s, s^2) with running mean d and deviation s of the "
        "discrepancy; the width of `erf`: `margin_std`, or the discrepancy's running root mean square",
        source=TEMPORAL,
    )
    margin_decay: UnitFloat = param(
        0.99, help="share that the running mean and deviation keep at a step", source=TEMPORAL
    )
    margin_distance: Literal["logits", "probabilities"] = param(
        "logits", help="what is compared: logits relative to the teacher's, or softmax outputs", source=TEMPORAL
    )


SMALL_INPUT = 64
"""Largest image side, in pixels, with a recipe's CIFAR values; larger images take its ImageNet values."""
FEW_CLASSES = 10
"""Most classes with a recipe's CIFAR-10 values, where they differ from its CIFAR-100 values."""


def batch_size(params: GeneratorParams, card: ModelCard) -> int:
    """Return the images of a generator step for a teacher with this card."""
    if is_large(card.input_size):
        return params.batch_large
    return params.batch_few_classes if card.classes <= FEW_CLASSES else params.batch


def is_large(input_size: tuple[int, int, int]) -> bool:
    """Check whether images of size (C, H, W) take a recipe's ImageNet values."""
    return max(input_size[1:]) > SMALL_INPUT
