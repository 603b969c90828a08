"""Hyper-parameters and recipes of `distill`; free of torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from dfqbench.api import UsageError, param
from dfqbench.quant import check_range_rule

GDFQ = "released code (GDFQ)"


@dataclass(frozen=True)
class DistillParams:
    """Hyper-parameters of `distill`; the defaults are GDFQ's, recipes have others.

    Values with a twin `..._large` are for inputs up to 64 pixels, the twin is for larger ones.
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
        if self.alpha == self.ce_weight == self.mse_weight == 0:
            raise UsageError("distill has no loss left", "set one of alpha, ce_weight and mse_weight above 0")
        check_range_rule(self.range)


_GDFQ = DistillParams()
# Distillation 100 times heavier than GDFQ's on CIFAR-100. The paper's warm-up is 50 epochs, the code's 10 on CIFAR
# (methods.md 3.1).
_CLUSTERQ = dataclasses.replace(_GDFQ, reduction="batchmean", batch_few_classes=512, warmup_epochs=50)
# Logits' squared difference instead of KL, without temperature (methods.md 6).
_KMDFQ = dataclasses.replace(_GDFQ, alpha=0.0, mse_weight=1.0, warmup_epochs=20, warmup_epochs_large=50)
_TEMPORAL = dataclasses.replace(_KMDFQ, interpolation=0.5)
# The fine-tuning of most later papers (methods.md 8.3, released code): alpha times T^2 times the batch mean of KL, and
# every image cropped and flipped at each step.
_INTRAQ = dataclasses.replace(
    _GDFQ,
    alpha=20.0,
    reduction="batchmean",
    epochs=151,
    lr_steps=(20, 40, 60),
    lr_steps_large=(100, 200, 350),
    warmup_epochs=4,
    warmup_epochs_large=4,
    batch=256,
    batch_few_classes=256,
    augment_share=1.0,
)
# DFFG's own (methods.md 5): as `intraq` at a rate that is stable on small networks, so the recipe of crosses.
_DFFG = dataclasses.replace(
    _GDFQ,
    alpha=20.0,
    reduction="batchmean",
    lr=1e-5,
    epochs=150,
    lr_steps=(100,),
    lr_steps_large=(100,),
    warmup_epochs_large=4,
    batch=64,
    batch_few_classes=64,
    batch_large=4,
)

RECIPES: Mapping[str, DistillParams] = {
    "gdfq": _GDFQ,
    "clusterq": _CLUSTERQ,
    "kmdfq": _KMDFQ,
    "temporal": _TEMPORAL,
    "intraq": _INTRAQ,
    "dffg": _DFFG,
}
