"""ZeroQ's offer to the host; free of torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from dfqbench.api import Context, Fidelity, Method, Offer, SampleSource, hookimpl, param

if TYPE_CHECKING:
    from torch import nn


CODE = "released code"


@dataclass(frozen=True)
class ZeroQParams:
    """Hyper-parameters of ZeroQ."""

    iterations: PositiveInt = param(500, help="updates of each batch of images", source=CODE, unit="steps")
    images: PositiveInt = param(64, help="images made in all", source=f"{CODE}: run.sh")
    batch: PositiveInt = param(64, help="images updated together", source=f"{CODE}: run.sh (argparse default: 32)")
    lr: PositiveFloat = param(0.5, help="initial learning rate of Adam on the pixels", source=CODE)
    plateau_factor: PositiveFloat = param(0.1, help="factor on the rate where the loss stops falling", source=CODE)
    plateau_patience: NonNegativeInt = param(100, help="steps without a better loss before that", source=CODE)
    min_lr: NonNegativeFloat = param(1e-4, help="lowest learning rate", source=CODE)
    eps: PositiveFloat = param(1e-6, help="added to variances before the root", source=CODE)
    init: Literal["released", "intended"] = param(
        "released",
        help="initial noise U{0..254} - 127.5, divided by the variance of U(-128, 127) as released (deviation 0.014) "
        "or by its standard deviation as intended (1.0)",
        source=f"{CODE}; `intended` inferred: a variance stands where a standard deviation was meant",
    )
    input_target: Literal["card", "released"] = param(
        "card",
        help="statistics of image and initial noise: the domain's under the card's normalisation, or 0 and 1 as "
        "released",
        source=f"{CODE} where the card normalises with its domain's; else inferred: 0 and 1 are those of such a card",
    )


class ZeroQ(Method):
    """Images whose BatchNorm statistics are those of the training data, for calibration."""

    name = "zeroq"
    title = "ZeroQ"
    paper = "Cai et al., ZeroQ: A Novel Zero Shot Quantization Framework, CVPR 2020"
    link = "https://arxiv.org/abs/2001.00281"
    fidelity = Fidelity.RELEASED
    quantizer = "calibrate"
    params_type = ZeroQParams
    params: ZeroQParams

    def synthesize(self, teacher: nn.Module, ctx: Context) -> SampleSource:
        """Distill the images; a fixed source without labels."""
        from dfqbench_methods.zeroq.synthesizer import synthesize

        return synthesize(teacher, ctx, self.params)


@hookimpl
def dfqbench_methods() -> list[Offer]:
    """Offer ZeroQ."""
    return [Offer("zeroq", "dfqbench_methods.zeroq.plugin:ZeroQ")]
