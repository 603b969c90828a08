"""A plugin in one file: every image is one flat colour. Try it: `dfqbench methods show flat --plugin flat.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dfqbench.api import Context, Fidelity, Method, Offer, Requires, SampleSource, hookimpl, param

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class FlatParams:
    """Parameters of the flat images."""

    images: int = param(64, help="images made in all", source="inferred: what `calibrate` draws")
    spread: float = param(1.0, help="standard deviation of the colours", unit="input std", source="inferred: natural")


class Flat(Method):
    """One random colour an image; carries no texture at all."""

    name = "flat"
    title = "Flat colours"
    paper = "an example of dfqbench's tests"
    fidelity = Fidelity.RECONSTRUCTION
    requires = Requires(batchnorm=False)
    params_type = FlatParams
    params: FlatParams

    def synthesize(self, teacher: nn.Module, ctx: Context) -> SampleSource:
        """Draws the colours; the images are a fixed set."""
        import torch

        from dfqbench.synth.source import FixedSource

        channels, height, width = ctx.card.input_size
        colours = torch.randn((self.params.images, channels, 1, 1), generator=ctx.generator, device=ctx.device)
        return FixedSource((self.params.spread * colours).expand(-1, -1, height, width).contiguous())


@hookimpl
def dfqbench_methods() -> list[Offer]:
    """Offers the method; `:Flat` is the class in this file."""
    return [Offer("flat", ":Flat")]
