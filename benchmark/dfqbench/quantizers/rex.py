"""`rex`: weights as sums of quantized terms; free of torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field, PositiveInt

from dfqbench.api import param
from dfqbench.quantizers.weight_quantizer import RangeParams, WeightQuantizer

if TYPE_CHECKING:
    from dfqbench.api.context import Context
    from dfqbench.quant import Student


@dataclass(frozen=True)
class RexParams(RangeParams):
    """Hyper-parameters of `rex`."""

    terms: PositiveInt = param(
        2,
        help="K, most terms of a weight; 1: rounding to nearest",
        source="inferred: two terms of 4 bits cost as much as one of 8",
    )
    gamma: Annotated[float, Field(ge=0, le=1)] = param(
        1.0,
        help="share of the output channels that each term after the first covers, mean over layers; 0: one term",
        source="inferred: all; notes about the paper name 0.5",
    )


class Rex(WeightQuantizer):
    """Each weight as a sum of quantized terms: a further term rounds what those before leave of it (methods.md 9.3).

    Yvinec et al., REx: Data-free residual quantization error expansion, NeurIPS 2023. More terms cost more operations:
    compare students at equal bit operations, which the record holds.
    """

    name: ClassVar[str] = "rex"
    title: ClassVar[str] = "weights as sums of quantized terms, no training"
    params_type = RexParams
    params: RexParams

    def set_weights(self, student: Student, ctx: Context) -> None:  # noqa: ARG002
        """Fix the scales of all terms."""
        from dfqbench.quantizers.residual_expansion import expand

        expand(student, self.params.terms, self.params.gamma)
