"""DFFG's offer to the host; free of torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

from dfqbench.api import Context, Fidelity, Method, Offer, SampleSource, UsageError, hookimpl, param

if TYPE_CHECKING:
    from torch import nn

INFERRED = "inferred: methods.md 5; only the abstract was at hand"


@dataclass(frozen=True)
class DffgParams:
    """Hyper-parameters of DFFG."""

    chains: PositiveInt = param(64, help="images that are iterated, each from noise of its own", source=INFERRED)
    batch: PositiveInt = param(64, help="chains updated together", source=INFERRED)
    iterations: PositiveInt = param(
        50, help="updates of each chain", source=f"{INFERRED}: a tenth of ZeroQ's 500", unit="steps"
    )
    keep: tuple[float, ...] = param(
        (0.6, 0.7, 0.8, 0.9),
        help="when intermediate iterates are kept as further images, in shares of the iterations; the last one always "
        "is; empty: no others",
        source=f"{INFERRED}: iterations 30, 35, 40 and 45 of 50",
    )
    momentum: NonNegativeFloat = param(1.0, help="decay of the accumulated gradient", source=f"{INFERRED}: MI-FGSM's")
    step: PositiveFloat = param(
        0.1, help="size of the first step", source=INFERRED, unit="natural images' standard deviations"
    )
    last_step: PositiveFloat = param(
        0.01, help="size of the last step, after a cosine", source=INFERRED, unit="natural images' standard deviations"
    )
    statistics: Literal["sample", "batch"] = param(
        "sample", help="whose statistics are matched: each image's (ZeroQ's loss) or the batch's", source=INFERRED
    )
    variability: Literal["pixel", "layers", "none"] = param(
        "pixel",
        help="what makes gradients vary: a random factor for each pixel, layers dropped from each image's loss, or "
        "nothing",
        source=INFERRED,
    )
    pixel_noise: NonNegativeFloat = param(0.5, help="standard deviation of the pixels' factor about 1", source=INFERRED)
    layer_drop: NonNegativeFloat = param(0.3, help="probability that a layer is dropped", source=INFERRED)
    eps: PositiveFloat = param(1e-6, help="added to variances before the root", source="released code (ZeroQ)")
    input_target: Literal["card", "released"] = param(
        "card",
        help="mean and deviation of the initial noise and of the images: natural images' under the card's "
        "normalisation, or 0 and 1",
        source="inferred: as for ZeroQ",
    )

    def __post_init__(self) -> None:
        if any(not 0 < share < 1 for share in self.keep):
            raise UsageError("dffg.keep holds a share outside (0, 1)", "the last iterate (1.0) is always kept")
        if self.layer_drop >= 1:
            raise UsageError("dffg.layer_drop leaves no layer", "give a probability below 1")
        if self.statistics == "batch" and self.variability == "layers":
            raise UsageError(
                "dffg.variability 'layers' drops layers from each image's loss, which statistics 'batch' does not have",
                "use variability 'pixel' or statistics 'sample'",
            )


class Dffg(Method):
    """Signed gradient steps with momentum: few iterations, and iterates on the way are images too."""

    name = "dffg"
    title = "DFFG"
    paper = "Leng et al., DFFG: Fast Gradient Iteration for Data-free Quantization, BMVC 2023"
    link = "https://proceedings.bmvc2023.org/514/"
    fidelity = Fidelity.RECONSTRUCTION
    quantizer = "calibrate"
    params_type = DffgParams
    params: DffgParams

    def synthesize(self, teacher: nn.Module, ctx: Context) -> SampleSource:
        """Iterate the images; a fixed source, last iterates first."""
        from dfqbench_methods.dffg.synthesizer import synthesize

        return synthesize(teacher, ctx, self.params)


@hookimpl
def dfqbench_methods() -> list[Offer]:
    """Offer DFFG."""
    return [Offer("dffg", "dfqbench_methods.dffg.plugin:Dffg")]
