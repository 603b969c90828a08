"""Hyper-parameters of `distill`; free of torch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from dfqbench.api import UsageError, param
from dfqbench.quant import check_range_rule
from dfqbench.synth.params import FEW_CLASSES, is_large

if TYPE_CHECKING:
    from dfqbench.api import ModelCard

GDFQ = "released code (GDFQ)"
HAST = "released code (HAST)"
SYNQ = "released code (SynQ)"
ADADFQ = "released code (AdaDFQ)"


@dataclass(frozen=True)
class DistillParams:
    """Hyper-parameters of `distill`; the defaults are GDFQ's, recipes have others.

    Values with a twin `..._large` are for inputs up to 64 pixels, the twin is for larger ones; a twin
    `..._few_classes` is for inputs up to 64 pixels and at most ten classes. A twin of None has
    the same value. A loss whose weight is 0 is off, whatever the weight's twins are.
    """

    temperature: PositiveFloat = param(20.0, help="T of the distillation term", source=GDFQ)
    alpha: NonNegativeFloat = param(1.0, help="weight of T^2 KL(teacher || student); 0: off", source=GDFQ)
    reduction: Literal["mean", "batchmean"] = param(
        "mean",
        help="how KL is averaged: `mean` over images and classes (smaller by the number of classes), `batchmean` over "
        "images",
        source="released code (GDFQ): the default of nn.KLDivLoss",
    )
    ce_weight: NonNegativeFloat = param(1.0, help="weight of cross-entropy against the label; 0: off", source=GDFQ)
    mse_weight: NonNegativeFloat = param(
        0.0, help="weight of the logits' mean squared difference; 0: off", source="released code (KMDFQ uses 1)"
    )
    ce_threshold: NonNegativeFloat = param(
        0.0,
        help="tau: cross-entropy counts for images with 1 - p_y < tau, p_y the teacher's probability of the label; "
        "0: for all images",
        source=SYNQ,
    )
    ce_threshold_few_classes: NonNegativeFloat | None = param(
        None, help="the same for networks of at most ten classes", source="paper (SynQ, CIFAR-10)"
    )
    ce_mask: Literal["masked", "released"] = param(
        "masked",
        help="images above the threshold count 0, or log C as released: a constant that changes no gradient",
        source="inferred: the released constant has no effect",
    )
    gap_entropy_weight: NonNegativeFloat = param(
        0.0, help="weight of -T^2 times the entropy of softmax((z_P - z_Q) / T); 0: off", source=ADADFQ
    )
    gap_entropy_temperature: PositiveFloat = param(20.0, help="T of this term", source=ADADFQ)
    gap_entropy_temperature_large: PositiveFloat | None = param(None, help="the same for larger inputs", source=ADADFQ)
    feature_weight: NonNegativeFloat = param(
        0.0, help="weight of the blocks' attention differences; 0: off", source=HAST
    )
    feature_weight_few_classes: NonNegativeFloat | None = param(
        None, help="the same for networks of at most ten classes", source=HAST
    )
    feature_weight_large: NonNegativeFloat | None = param(None, help="the same for larger inputs", source=HAST)
    cam_weight: NonNegativeFloat = param(
        0.0, help="weight of the squared difference of the Grad-CAM maps; 0: off", source=SYNQ
    )
    fgsm_weight: NonNegativeFloat = param(
        0.0,
        help="weight of the loss on images moved by a step along the sign of the loss's gradient; 0: off",
        source=HAST,
    )
    fgsm_epsilon: NonNegativeFloat = param(0.01, help="this step, in the normalised space", source=HAST)
    fgsm_epsilon_few_classes: NonNegativeFloat | None = param(
        None, help="the same for networks of at most ten classes", source=HAST
    )
    fgsm_epsilon_large: NonNegativeFloat | None = param(None, help="the same for larger inputs", source=HAST)
    fgsm_features: bool = param(True, help="whether moved images count in the attention differences", source=HAST)
    fgsm_features_large: bool | None = param(None, help="the same for larger inputs", source=HAST)
    low_pass: NonNegativeFloat = param(
        0.0,
        help="D0 of the images' Gaussian low-pass filter, as a share of the image's side in bins; 0: off",
        source="released code (SynQ: 80 bins at 224 pixels); for other sizes inferred",
    )
    lr: PositiveFloat = param(1e-4, help="learning rate of SGD", source=GDFQ)
    lr_large: PositiveFloat = param(1e-6, help="the same for larger inputs", source=GDFQ)
    momentum: NonNegativeFloat = param(0.9, help="momentum of SGD, Nesterov's unless 0", source=GDFQ)
    weight_decay: NonNegativeFloat = param(1e-4, help="weight decay on every parameter", source=GDFQ)
    epochs: PositiveInt = param(400, help="epochs in all, before the budget", source=GDFQ, unit="epochs")
    iterations: PositiveInt = param(200, help="steps of an epoch", source=GDFQ, unit="steps")
    lr_steps: tuple[int, ...] = param(
        (100, 200, 300), help="epochs at which the learning rate decays", source=GDFQ, unit="epochs"
    )
    lr_steps_large: tuple[int, ...] = param(
        (100, 200, 300), help="the same for larger inputs", source=GDFQ, unit="epochs"
    )
    lr_factor: PositiveFloat = param(0.1, help="factor of each decay", source=GDFQ)
    lr_schedule: Literal["steps", "cosine"] = param(
        "steps",
        help="decays at `lr_steps`, or half a cosine down to 0 over the student's steps",
        source=f"{GDFQ}; AKD: cosine",
    )
    student_steps: PositiveInt = param(
        1, help="updates of a step, the later ones on images drawn anew", source="third-party code (AKD: 10)"
    )
    range_epochs: NonNegativeInt = param(
        4, help="first epochs, in which activation ranges follow the batches", source=GDFQ, unit="epochs"
    )
    range: str = param(
        "ema",
        help="range rule: `ema`, a moving average; `ema-official`, the released one, which overshoots and needs 200 "
        "steps; `minmax`, running minimum and maximum; `mean`, `percentile`, `mse` or `sigma`, averaged over batches; "
        "or a plugin's",
        source="inferred: what the released rule settles to (methods.md 0.1)",
    )
    warmup_epochs: NonNegativeInt = param(
        4, help="epochs before the student's weights move, the range phase among them", source=GDFQ, unit="epochs"
    )
    warmup_epochs_large: NonNegativeInt = param(50, help="the same for larger inputs", source=GDFQ, unit="epochs")
    batch: PositiveInt = param(
        200, help="images of a step, at most as many as a source makes", source=GDFQ, unit="images"
    )
    batch_few_classes: PositiveInt = param(
        200,
        help="the same for networks of at most ten classes",
        source="inferred: GDFQ's CIFAR-100 value",
        unit="images",
    )
    batch_large: PositiveInt = param(16, help="the same for larger inputs", source=GDFQ, unit="images")
    interpolation: NonNegativeFloat = param(
        0.0,
        help="share of steps on mixtures of two images, lambda ~ U(0, 1); 0: off",
        source="inferred: temporal diversity uses 0.5 (methods.md 6)",
    )
    augment_share: NonNegativeFloat = param(
        0.0,
        help="share of steps whose images are cropped and flipped, each image by itself; 0: off",
        source="released code (IntraQ trains on such images only: 1)",
    )
    augment_scale: PositiveFloat = param(
        0.5, help="smallest share of the area that a crop keeps", source="released code (IntraQ)"
    )

    def __post_init__(self) -> None:
        on_logits = (self.alpha, self.ce_weight, self.mse_weight, self.gap_entropy_weight)
        if not any((*on_logits, self.feature_weight, self.cam_weight)):
            raise UsageError("distill has no loss left", "set one of alpha, ce_weight and mse_weight above 0")
        if self.fgsm_weight > 0 and not any((*on_logits, self.feature_weight)):
            raise UsageError("distill has no loss for adversarial images", "set alpha above 0, or fgsm_weight=0")
        check_range_rule(self.range)

    def for_card(self, card: ModelCard) -> Self:
        """Return the values for a teacher with this card, under the names without `_large` and `_few_classes`."""
        few_classes = "_few_classes" if card.classes <= FEW_CLASSES else ""
        suffix = "_large" if is_large(card.input_size) else few_classes
        names = [field.name for field in dataclasses.fields(self) if not self._is_off(field.name)]
        twins: dict[str, Any] = {name: getattr(self, name + suffix, None) for name in names if suffix}
        return dataclasses.replace(self, **{name: value for name, value in twins.items() if value is not None})

    def _is_off(self, name: str) -> bool:
        return name in {"feature_weight", "ce_threshold"} and getattr(self, name) == 0
