"""The temporal-diversity method's offer to the host; free of torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import NonNegativeFloat, NonNegativeInt

from dfqbench.api import Context, Fidelity, Method, Offer, SampleSource, hookimpl, param
from dfqbench.synth import GeneratorParams

if TYPE_CHECKING:
    from torch import nn

KMDFQ = "released code (KMDFQ), inferred to be the base from shared authors"
INFERRED = "inferred: methods.md 6; only the abstract was at hand"


@dataclass(frozen=True)
class TemporalParams(GeneratorParams):
    """Hyper-parameters of temporal diversity: KMDFQ's generator and the Gaussian margin."""

    bns_weight: NonNegativeFloat = param(1.0, help="weight of the BatchNorm-statistics loss; 0: off", source=KMDFQ)
    margin_weight: NonNegativeFloat = param(
        1.0, help="weight of the Gaussian-margin adversarial loss through the student; 0: off", source=INFERRED
    )
    margin_start: NonNegativeInt = param(
        20, help="epoch from which it is on, inputs up to 64 pixels", source=f"{INFERRED}: after warm-up", unit="epochs"
    )


class Temporal(Method):
    """GDFQ with a Gaussian margin: images on which the student still differs from the teacher.

    Interpolated images, the method's other part, are a parameter of `distill` and of the recipe `temporal`.
    """

    name = "temporal"
    title = "Temporal diversity"
    paper = "Luo et al., Learning to Generate Diverse Data From a Temporal Perspective for DFQ, IEEE TCSVT 2024"
    link = "https://openreview.net/forum?id=YJ2Ho3rFhL"
    fidelity = Fidelity.RECONSTRUCTION
    quantizer = "distill:temporal"
    depends_on_bits = True
    params_type = TemporalParams
    params: TemporalParams

    def synthesize(self, teacher: nn.Module, ctx: Context) -> SampleSource:
        """Build the generator with its margin loss; a live source."""
        from dfqbench.synth import GeneratorSource, base_terms

        return GeneratorSource(teacher, ctx, self.params, what="temporal", losses=base_terms(ctx, self.params))


@hookimpl
def dfqbench_methods() -> list[Offer]:
    """Offer the temporal-diversity method."""
    return [Offer("temporal", "dfqbench_methods.temporal.plugin:Temporal")]
