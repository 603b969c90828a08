"""The noise control's offer to the host; free of torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import NonNegativeFloat

from dfqbench.api import Context, Fidelity, Method, Offer, Requires, SampleSource, hookimpl, param

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class NoiseParams:
    """Parameters of the noise control."""

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
        from dfqbench_methods.noise.source import NoiseSource

        return NoiseSource(ctx.card, seed=ctx.seed("noise"), scale=self.params.scale, device=ctx.device)


@hookimpl
def dfqbench_methods() -> list[Offer]:
    """Offer the noise control."""
    return [Offer("noise", "dfqbench_methods.noise.plugin:Noise")]
