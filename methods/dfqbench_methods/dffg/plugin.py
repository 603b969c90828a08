"""DFFG's offer to the host; free of torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

from dfqbench.api import Context, Fidelity, Method, Offer, SampleSource, UsageError, hookimpl, param

if TYPE_CHECKING:
    from torch import nn

KEPT: Mapping[str, tuple[float, ...]] = {
    "2X": (1.0,),
    "4X": (0.6, 1.0),
    "8X": (0.6, 0.7, 0.9, 1.0),
    "10X": (0.6, 0.7, 0.8, 0.9, 1.0),
}
"""Shares of the iterations after which the images are kept, by the paper's name: its speed relative to ZeroQ."""
NOT_PRINTED = "inferred: the paper does not print it"


def save_points(shares: tuple[float, ...], steps: int) -> list[int]:
    """Return the numbers of steps, from 1, after which images are kept; shares that meet in one step count once."""
    return sorted({max(1, round(share * steps)) for share in shares})


@dataclass(frozen=True)
class DffgParams:
    """Hyper-parameters of DFFG."""

    images: PositiveInt = param(
        5120, help="images kept in all, last iterates first", source=f"{NOT_PRINTED}; IntraQ's, 4 runs x 256 x 5"
    )
    batch: PositiveInt = param(
        256, help="most chains of images iterated together", source=f"{NOT_PRINTED}; IntraQ's", unit="images"
    )
    batch_large: PositiveInt = param(
        64, help="the same for inputs above 64 pixels", source="inferred: bounded by memory", unit="images"
    )
    iterations: PositiveInt = param(
        250, help="updates of each chain", source=f"{NOT_PRINTED}; 2X is half of ZeroQ's 500", unit="steps"
    )
    keep: Literal["2X", "4X", "8X", "10X"] | tuple[float, ...] = param(
        "10X",
        help="when a chain's iterates are kept: a setting of the paper (2X: at the end; 4X: also at 0.6; 8X: at 0.6, "
        "0.7, 0.9; 10X: at 0.6, 0.7, 0.8, 0.9), or shares of the iterations in (0, 1]",
        source="paper",
    )
    step: PositiveFloat = param(
        0.1, help="size of every step", source="paper", unit="the normalised input's standard deviations"
    )
    momentum: NonNegativeFloat = param(0.9, help="decay of the accumulated gradient; 0: off", source="paper")
    clip: bool = param(False, help="clip images to the range of pixels after each step", source="paper: none is stated")
    bns_weight: NonNegativeFloat = param(1.0, help="weight of the BatchNorm statistics; 0: off", source="paper")
    norm: Literal["l2", "mse"] = param(
        "l2",
        help="distance of a layer's statistics: the norm, or the mean of squares over channels",
        source="paper; `mse` inferred: as in generator methods",
    )
    eps: PositiveFloat = param(
        1e-6, help="added to variances before the root", source="inferred: ZeroQ's, released code"
    )
    ce_weight: NonNegativeFloat = param(
        1.0, help="weight of the teacher's cross-entropy against the label; 0: off", source=NOT_PRINTED
    )
    tv_weight: NonNegativeFloat = param(
        2.5e-5,
        help="weight of the total variation: norms of the batch's differences to neighbours in four directions; 0: off",
        source=f"{NOT_PRINTED}; released code (DeepInversion, CIFAR-10), form and value",
    )
    l2_weight: NonNegativeFloat = param(
        1e-5,
        help="weight of the mean norm of an image; 0: off",
        source=f"{NOT_PRINTED}; form and value as in DeepInversion, from memory",
    )

    def __post_init__(self) -> None:
        if not self.shares or any(not 0 < share <= 1 for share in self.shares):
            raise UsageError(
                f"dffg.keep needs shares in (0, 1], got {list(self.shares)}", f"or one of {', '.join(KEPT)}"
            )
        points = save_points(self.shares, self.iterations)
        if len(points) < len(self.shares):
            raise UsageError(
                f"dffg.keep names {len(self.shares)} iterates, but {self.iterations} iterations have only "
                f"{len(points)} for them",
                "raise dffg.iterations or give fewer, different shares",
            )
        if self.bns_weight == self.ce_weight == 0:
            raise UsageError("dffg has no loss of the teacher left", "set bns_weight or ce_weight above 0")

    @property
    def shares(self) -> tuple[float, ...]:
        """Shares of the iterations after which images are kept."""
        return KEPT[self.keep] if isinstance(self.keep, str) else self.keep


class Dffg(Method):
    """Signed gradient steps with momentum from labelled noise; iterates on the way are images too."""

    name = "dffg"
    title = "DFFG"
    paper = "Leng et al., DFFG: Fast Gradient Iteration for Data-free Quantization, BMVC 2023"
    link = "https://proceedings.bmvc2023.org/514/"
    fidelity = Fidelity.PAPER
    quantizer = "distill:dffg"
    params_type = DffgParams
    params: DffgParams

    def synthesize(self, teacher: nn.Module, ctx: Context) -> SampleSource:
        """Iterate the images; a fixed source with labels, last iterates first."""
        from dfqbench_methods.dffg.synthesizer import synthesize

        return synthesize(teacher, ctx, self.params)


@hookimpl
def dfqbench_methods() -> list[Offer]:
    """Offer DFFG."""
    return [Offer("dffg", "dfqbench_methods.dffg.plugin:Dffg")]
