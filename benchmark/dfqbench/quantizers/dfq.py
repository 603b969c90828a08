"""`dfq`: weights made fit for rounding, with the errors' means corrected; free of torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat

from dfqbench.api import Unavailable, param
from dfqbench.quantizers.weight_quantizer import RangeParams, WeightQuantizer

if TYPE_CHECKING:
    from dfqbench.api.context import Context
    from dfqbench.quant import Student


@dataclass(frozen=True)
class DfqParams(RangeParams):
    """Hyper-parameters of `dfq`."""

    sweeps: NonNegativeInt = param(
        200,
        help="most sweeps of equalization over the network; 0: none",
        source="inferred: the paper says until convergence",
    )
    tolerance: NonNegativeFloat = param(
        2e-4, help="largest |log scale| of the last sweep", source="inferred: the paper says until convergence"
    )
    largest_scale: PositiveFloat = param(
        1e3,
        help="bound of a channel's scale and of its inverse",
        source="inferred: unbounded scales diverge (TinyNeuralNetwork)",
    )
    absorb_deviations: PositiveFloat | None = param(
        3.0, help="n of the bias beta - n |gamma| that is absorbed into the next layer; None: none", source="paper"
    )
    correct_bias: bool = param(True, help="whether the mean error of rounding is taken out of the bias", source="paper")


class Dfq(WeightQuantizer):
    """Cross-layer equalization, bias absorption, rounding to nearest, analytic bias correction (methods.md 9.2).

    Nagel et al., Data-free quantization through weight equalization and bias correction, ICCV 2019. It needs a protocol
    that folds BatchNorm; the effect is largest where a weight tensor has one range.
    """

    name: ClassVar[str] = "dfq"
    title: ClassVar[str] = "equalized weights and corrected biases, no training"
    needs_folded_batchnorm: ClassVar[bool] = True
    params_type = DfqParams
    params: DfqParams

    def set_weights(self, student: Student, ctx: Context) -> None:
        """Equalize, absorb and correct.

        Raises:
            Unavailable: the protocol does not fold BatchNorm.
        """
        from dfqbench.quantizers.equalization import absorb_biases, convolution_pairs, correct_biases, equalize

        protocol, params = student.scheme.protocol, self.params
        if not protocol.fold_batchnorm:
            raise Unavailable(
                f"dfq needs folded BatchNorm, which protocol '{protocol.name}' does not have",
                "use a protocol that folds it, such as tensor or deploy",
            )
        if params.sweeps:
            equalize(student, convolution_pairs(student), params.sweeps, params.tolerance, params.largest_scale)
        if params.absorb_deviations is not None:
            absorb_biases(convolution_pairs(student), params.absorb_deviations)
        if params.correct_bias:
            correct_biases(student, ctx.card)
