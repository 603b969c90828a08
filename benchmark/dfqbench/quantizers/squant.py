"""`squant`: weights rounded such that the errors of kernels and channels cancel; free of torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from dfqbench.api import param
from dfqbench.quantizers.weight_quantizer import RangeParams, WeightQuantizer

if TYPE_CHECKING:
    from dfqbench.api.context import Context
    from dfqbench.quant import Student


@dataclass(frozen=True)
class SQuantParams(RangeParams):
    """Hyper-parameters of `squant`."""

    stages: Literal["kc", "k", "c"] = param(
        "kc", help="where the errors cancel: in kernels (`k`), output channels (`c`)", source="released code (SQuant)"
    )


class SQuant(WeightQuantizer):
    """Weights rounded up or down such that the errors of each kernel and output channel cancel (methods.md 9.1).

    Guo et al., SQuant, ICLR 2022. Scale and zero point stay those of the teacher's weights.
    """

    name: ClassVar[str] = "squant"
    title: ClassVar[str] = "weights rounded so that errors cancel, no training"
    params_type = SQuantParams
    params: SQuantParams

    def set_weights(self, student: Student, ctx: Context) -> None:  # noqa: ARG002
        """Set each weight to levels of its scale, and fix the scale."""
        from dfqbench.quantizers.squant_rounding import squant

        squant(student, self.params.stages)
