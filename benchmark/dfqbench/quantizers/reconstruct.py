"""`reconstruct`: learned rounding of the weights, block by block; free of torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Sized
from typing import TYPE_CHECKING, Any, ClassVar, cast

from dfqbench.api import Quantizer, Unavailable
from dfqbench.quantizers.reconstruct_params import RECIPES, ReconstructParams

if TYPE_CHECKING:
    from torch import nn

    from dfqbench.api.batch import SampleSource
    from dfqbench.api.context import Context
    from dfqbench.quant import Student


class Reconstruct(Quantizer):
    """Rounding and scales are learned so that each unit of the student gives its teacher's output.

    AdaRound (Nagel et al., ICML 2020) block by block (BRECQ, Li et al., ICLR 2021), with QDrop (Wei et al., ICLR 2022)
    and learned scales (Genie, Jeon et al., CVPR 2023). Labels and logits are not used. A live source is first trained
    alone.
    """

    name: ClassVar[str] = "reconstruct"
    title: ClassVar[str] = "learned rounding, block by block"
    params_type = ReconstructParams
    recipes: ClassVar[Mapping[str, Any]] = RECIPES
    default_recipe: ClassVar[str] = "genie"
    cross_images: ClassVar[int | None] = 1024
    params: ReconstructParams

    def quantize(self, teacher: nn.Module, source: SampleSource, ctx: Context) -> Student:
        """Make one student.

        Args:
            teacher: full-precision network, left as it is.
            source: fixed or live.
            ctx: the host's side of the cell.

        Raises:
            Unavailable: the source has fewer images than a batch, or the network uses a layer twice.
            NonFiniteError: a unit's loss is not finite.
        """
        (student,) = self.quantize_many(teacher, source, [ctx])
        return cast("Student", student)  # the error of a single student is raised

    def quantize_many(
        self, teacher: nn.Module, source: SampleSource, contexts: Sequence[Context]
    ) -> Sequence[Student | None]:
        """Make one student for each context from the same images; arguments as in `quantize`.

        Students under one protocol share the caches of the teacher's outputs.
        """
        from dfqbench.quantizers.reconstruct_loop import Reconstruction

        count = min(self.params.images, len(source)) if isinstance(source, Sized) else self.params.images
        if count < self.params.batch:
            raise Unavailable(
                f"reconstruct has {count} images for batches of {self.params.batch}",
                f"make more images or set reconstruct.batch to at most {count}",
            )
        return Reconstruction(teacher, source, contexts, self.params, count).run()
