"""`distill`: GDFQ's training of a student on its teacher's outputs; free of torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, cast

from dfqbench.api import Quantizer
from dfqbench.quantizers.distill_params import DistillParams
from dfqbench.quantizers.distill_recipes import RECIPES

if TYPE_CHECKING:
    from torch import nn

    from dfqbench.api.batch import SampleSource
    from dfqbench.api.context import Context
    from dfqbench.quant import Student


class Distill(Quantizer):
    """Activation ranges from the first batches, then training of all parameters on the teacher's outputs.

    BatchNorm stays in eval mode while its scale and shift train; ranges are frozen while the weights train (methods.md
    0.1, 0.2). With a live source each step first trains the generator; the students learn from the batch made before
    that update. The generator keeps its own batch and number of steps: those that the recipe lacks come first.
    """

    name: ClassVar[str] = "distill"
    title: ClassVar[str] = "training on the teacher's outputs"
    params_type = DistillParams
    recipes: ClassVar[Mapping[str, Any]] = RECIPES
    default_recipe: ClassVar[str] = "dffg"
    cross_images: ClassVar[int | None] = 1024
    params: DistillParams

    def quantize(self, teacher: nn.Module, source: SampleSource, ctx: Context) -> Student:
        """Make and train one student.

        Args:
            teacher: full-precision network, left as it is.
            source: fixed or live.
            ctx: the host's side of the cell.

        Raises:
            UsageError: the range phase is too short for the range rule.
            NonFiniteError: the loss is not finite.
        """
        (student,) = self.quantize_many(teacher, source, [ctx])
        return cast("Student", student)  # the error of a single student is raised

    def quantize_many(
        self, teacher: nn.Module, source: SampleSource, contexts: Sequence[Context]
    ) -> Sequence[Student | None]:
        """Make and train one student for each context, all on the same batches; arguments as in `quantize`."""
        from dfqbench.quantizers.distill_loop import Distillation

        return Distillation(teacher, source, contexts, self.params).run()
