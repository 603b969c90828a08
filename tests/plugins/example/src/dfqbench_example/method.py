"""A method: stripes of random direction and width."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import PositiveFloat, PositiveInt

from dfqbench.api import Context, Fidelity, Method, Requires, SampleSource, param

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class StripesParams:
    """Hyper-parameters of the stripes."""

    images: PositiveInt = param(64, help="images made", source="inferred: what `calibrate` draws")
    widest: PositiveFloat = param(8.0, help="longest period of the stripes", source="inferred", unit="pixels")


class Stripes(Method):
    """Waves of random direction, period and colour: structure without any learning."""

    name = "stripes"
    title = "Stripes"
    paper = "an example of dfqbench"
    fidelity = Fidelity.PAPER
    requires = Requires(batchnorm=False)
    params_type = StripesParams
    params: StripesParams

    def synthesize(self, teacher: nn.Module, ctx: Context) -> SampleSource:
        """Draws the stripes."""
        from dfqbench_example.synthesizer import stripes

        return stripes(ctx, self.params)
