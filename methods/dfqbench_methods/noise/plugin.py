"""The noise control's offer to the host; free of torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import NonNegativeFloat, PositiveInt

from dfqbench.api import Context, Fidelity, Method, Offer, Requires, SampleSource, hookimpl, param

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class NoiseParams:
    """Parameters of the noise control."""

    images: PositiveInt = param(64, help="images that are drawn", source="a choice of this benchmark: as ZeroQ")
    scale: NonNegativeFloat = param(
        1.0, help="factor on the noise's standard deviation", source="inferred: the domain's own"
    )


class Noise(Method):
    """Gaussian images with the mean and standard deviation of the domain: what a method must beat."""

    name = "noise"
    title = "Gaussian noise"
    paper = "a control of this benchmark"
    fidelity = Fidelity.CONTROL
    quantizer = "calibrate"
    requires = Requires(batchnorm=False)
    control = True
    params_type = NoiseParams
    params: NoiseParams

    def synthesize(self, teacher: nn.Module, ctx: Context) -> SampleSource:  # noqa: ARG002
        """Return the source; nothing is learned."""
        import torch

        from dfqbench_methods.noise.source import NoiseSource

        stats, params = ctx.card.input_stats, self.params
        mean, std = (torch.tensor(values, device=ctx.device) for values in (stats.mean, stats.std))
        return NoiseSource(ctx.card.input_size, params.images, ctx.seed("noise"), mean, std * params.scale)


@hookimpl
def dfqbench_methods() -> list[Offer]:
    """Offer the noise control."""
    return [Offer("noise", "dfqbench_methods.noise.plugin:Noise")]
