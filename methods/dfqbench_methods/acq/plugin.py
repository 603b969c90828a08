"""ACQ's offer to the host; free of torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import NonNegativeFloat

from dfqbench.api import Context, Fidelity, Method, Offer, SampleSource, hookimpl, param
from dfqbench.synth import GeneratorParams

if TYPE_CHECKING:
    from torch import nn

INFERRED = "inferred: methods.md 4; only the abstract was at hand"


@dataclass(frozen=True)
class AcqParams(GeneratorParams):
    """Hyper-parameters of ACQ: GDFQ's, and the attention losses."""

    centre_reach: NonNegativeFloat = param(
        0.7, help="largest coordinate of the attention centre asked for", source=INFERRED, unit="half image sides"
    )
    centre_weight: NonNegativeFloat = param(
        1.0, help="weight of attention-centre matching; 0: off", source=f"{INFERRED}; 0.1 to 10 are worth trying"
    )
    pair_weight: NonNegativeFloat = param(
        0.1, help="weight of the adversarial loss of pairs under one condition; 0: off", source=INFERRED
    )
    pair_form: Literal["cosine", "mode_seeking"] = param(
        "cosine",
        help="what pairs must not share: penultimate features' direction, or images closer than their noise",
        source=INFERRED,
    )
    consistency_weight: NonNegativeFloat = param(
        1.0,
        help="weight of the consistency of attention between BatchNorm's two modes, a second teacher pass; 0: off",
        source=INFERRED,
    )


class Acq(Method):
    """GDFQ whose images shall also draw the teacher's attention to a given place."""

    name = "acq"
    title = "ACQ"
    paper = (
        "Li et al., ACQ: Improving generative data-free quantization via attention correction, Pattern Recognition 2024"
    )
    link = "https://arxiv.org/abs/2301.07266"
    fidelity = Fidelity.RECONSTRUCTION
    quantizer = "distill:gdfq"
    params_type = AcqParams
    params: AcqParams

    def synthesize(self, teacher: nn.Module, ctx: Context) -> SampleSource:
        """Build the conditioned generator and its attention losses; a live source."""
        from dfqbench_methods.acq.synthesizer import synthesize

        return synthesize(teacher, ctx, self.params)


@hookimpl
def dfqbench_methods() -> list[Offer]:
    """Offer ACQ."""
    return [Offer("acq", "dfqbench_methods.acq.plugin:Acq")]
