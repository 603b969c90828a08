"""GDFQ's offer to the host; free of torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dfqbench.api import Context, Fidelity, Method, Offer, SampleSource, hookimpl
from dfqbench.synth import GeneratorParams

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class GdfqParams(GeneratorParams):
    """Hyper-parameters of GDFQ's generator: the family's own defaults."""


class Gdfq(Method):
    """A generator learns images that the teacher classifies as asked and whose BatchNorm statistics fit."""

    name = "gdfq"
    title = "GDFQ"
    paper = "Xu et al., Generative Low-bitwidth Data Free Quantization, ECCV 2020"
    fidelity = Fidelity.RELEASED
    quantizer = "distill:gdfq"
    params_type = GdfqParams
    params: GdfqParams

    def synthesize(self, teacher: nn.Module, ctx: Context) -> SampleSource:
        """Build the generator; a live source that learns while the student does."""
        from dfqbench_methods.gdfq.synthesizer import synthesize

        return synthesize(teacher, ctx, self.params)


@hookimpl
def dfqbench_methods() -> list[Offer]:
    """Offers GDFQ."""
    return [Offer("gdfq", "dfqbench_methods.gdfq.plugin:Gdfq")]
