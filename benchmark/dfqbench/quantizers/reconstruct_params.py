"""Hyper-parameters and recipes of `reconstruct`; free of torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from dfqbench.api import param

GENIE = "released code (Genie)"
Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True)
class ReconstructParams:
    """Hyper-parameters of `reconstruct`; the defaults are Genie's, recipes have others."""

    steps: NonNegativeInt = param(
        20_000, help="steps on each unit, before the budget; 0: rounding to nearest", source=GENIE, unit="steps"
    )
    activation_steps: NonNegativeInt = param(
        0,
        help="steps on each unit for activation scales, after all weights, before the budget; 0: both are learned "
        "together",
        source=GENIE,
        unit="steps",
    )
    images: PositiveInt = param(
        1024, help="images, drawn once; at most as many as a fixed source has", source=GENIE, unit="images"
    )
    batch: PositiveInt = param(32, help="images of a step", source=GENIE, unit="images")
    range_images: PositiveInt = param(
        32, help="first images, from which activation scales start", source=GENIE, unit="images"
    )
    grid_power: PositiveFloat = param(
        2.4, help="power p of the error |x - q(x)|^p that the clip ratio of each first scale minimizes", source=GENIE
    )
    zero_point: Literal["sign", "range"] = param(
        "sign",
        help="zero point of asymmetric activations: `sign`, the lowest or the middle level, as values below zero "
        "occur; `range`, from minimum and maximum",
        source=GENIE,
    )
    learns_weight_scale: bool = param(True, help="whether weight scales are learned with the rounding", source=GENIE)
    lr_rounding: PositiveFloat = param(
        1e-3,
        help="learning rate (Adam) of the rounding, constant; a budget that divides the steps multiplies it",
        source=f"{GENIE}; inferred: at the published rate no rounding is decided after a fortieth of the steps",
    )
    lr_weight_scale: PositiveFloat = param(1e-4, help="learning rate of weight scales, cosine to 0", source=GENIE)
    lr_activation_scale: PositiveFloat = param(
        4e-5, help="learning rate of activation scales, cosine to 0", source=GENIE
    )
    drop_input: Share = param(0.5, help="share of a unit's input elements that are the teacher's (QDrop)", source=GENIE)
    drop_activation: Share = param(
        0.5, help="share of activation elements inside a unit that are left in float (QDrop)", source=GENIE
    )
    rounding_weight: NonNegativeFloat = param(
        1.0, help="weight of sum 1 - |2h - 1|^beta, which drives the rounding h to 0 or 1", source=GENIE
    )
    warmup: Share = param(0.2, help="first share of the steps, without that term", source=GENIE)
    beta_start: PositiveFloat = param(20.0, help="beta at the end of the warm-up", source=GENIE)
    beta_end: PositiveFloat = param(2.0, help="beta at the end, reached linearly", source=GENIE)
    fisher: bool = param(
        False,
        help="whether squared differences to the teacher are weighted by squared gradients of KL(P || Q) at the unit's "
        "output, the diagonal of the Fisher matrix; needs a fourth cache",
        source="paper (BRECQ), an option; inferred: scaled to mean 1, later units in float",
    )
    cache_gib: NonNegativeFloat = param(
        4.0,
        help="most memory for a unit's inputs and outputs in float32 on the device; larger ones are kept in bfloat16 "
        "in the host's memory",
        source="inferred: the first units of ResNet-18 exceed it",
        unit="GiB",
    )


_GENIE = ReconstructParams()
# The same with fixed weight scales and a free zero point of activations (methods2.md 7c, released code).
_QDROP = dataclasses.replace(
    _GENIE, grid_power=2.0, zero_point="range", learns_weight_scale=False, rounding_weight=0.01
)
_BRECQ = dataclasses.replace(
    _GENIE,
    activation_steps=5_000,
    learns_weight_scale=False,
    lr_activation_scale=4e-4,
    drop_input=0.0,
    drop_activation=0.0,
    rounding_weight=0.01,
)

RECIPES: Mapping[str, ReconstructParams] = {"genie": _GENIE, "qdrop": _QDROP, "brecq": _BRECQ}
