"""ACQ's offer to the host; free of torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt

from dfqbench.api import Context, Fidelity, Method, Offer, SampleSource, hookimpl, param
from dfqbench.synth import GeneratorParams, UnitFloat

if TYPE_CHECKING:
    from torch import nn

INFERRED = "inferred: methods.md 4; only the abstract was at hand"


@dataclass(frozen=True)
class AcqParams(GeneratorParams):
    """Hyper-parameters of ACQ: GDFQ's, the attention losses, and the condition."""

    attention_start: NonNegativeInt = param(
        4,
        help="epoch from which the attention losses are on, inputs up to 64 pixels",
        source=f"{INFERRED}: with the student",
        unit="epochs",
    )
    attention_start_large: NonNegativeInt = param(
        50, help="the same for larger inputs", source=f"{INFERRED}: with the student", unit="epochs"
    )
    centre_condition: Literal["running", "uniform"] = param(
        "running",
        help="from that epoch, centres asked for are drawn around the running mean of the generator's own, or remain "
        "uniform; without the centre loss they are uniform",
        source=INFERRED,
    )
    centre_uniform: NonNegativeFloat = param(
        0.3, help="largest coordinate of a uniform centre", source=INFERRED, unit="half image sides"
    )
    centre_spread: NonNegativeFloat = param(
        1.5, help="deviation of the centres asked for, over that of the generator's own", source=INFERRED
    )
    centre_reach: NonNegativeFloat = param(
        0.7,
        help="largest coordinate of a centre asked for; others are clamped",
        source=INFERRED,
        unit="half image sides",
    )
    centre_decay: UnitFloat = param(
        0.99, help="share that the running mean and deviation of centres keep at a step", source=INFERRED
    )
    centre_weight: NonNegativeFloat = param(0.3, help="weight of attention-centre matching; 0: off", source=INFERRED)
    centre_tolerance: NonNegativeFloat = param(
        0.15,
        help="distance from the centre asked for that costs nothing",
        source=f"{INFERRED}: the abstract's matching is coarse-grained",
        unit="half image sides",
    )
    pair_weight: NonNegativeFloat = param(
        0.1, help="weight of the adversarial loss of pairs under one condition; 0: off", source=INFERRED
    )
    pair_margin: Annotated[float, Field(ge=-1, le=1)] = param(
        0.7, help="cosine similarity of a pair's attention maps that costs nothing", source=INFERRED
    )
    consistency_weight: NonNegativeFloat = param(
        1.0,
        help="weight of the consistency of attention between BatchNorm's two modes, a second teacher pass; 0: off",
        source=INFERRED,
    )
    bns_both: bool = param(
        False, help="whether the BatchNorm-statistics loss counts in that second pass, too", source=INFERRED
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
