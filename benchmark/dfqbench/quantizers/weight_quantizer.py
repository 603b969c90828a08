"""Base of the quantizers that set weights without training; activation ranges come from images, or from none."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, cast

from pydantic import PositiveInt

from dfqbench.api import Quantizer, has_images, param
from dfqbench.quantizers.calibrate import CalibrateParams, draw_images, set_ranges

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dfqbench.api.batch import SampleSource
    from dfqbench.api.context import Context
    from dfqbench.quant import Student


@dataclass(frozen=True)
class RangeParams(CalibrateParams):
    """Where a quantizer of weights takes the activation ranges from: as `calibrate`, or without images."""

    without_images: Literal["bn", "noise"] = param(
        "bn",
        help="ranges where the source has no images: `bn`, from BatchNorm; `noise`, from uniform noise",
        source="paper (DFQ); SQuant's released code has `noise`",
    )
    noise_images: PositiveInt = param(
        256, help="images of uniform noise in [0, 1], not normalised", source="released code (SQuant)", unit="images"
    )


class WeightQuantizer(Quantizer):
    """A quantizer that sets the student's weights from the teacher alone, in seconds.

    Derive from it and write `set_weights`. With a source of images the activation ranges are those of `calibrate` for
    the new weights; without images they follow the parameter `without_images`.
    """

    trains: ClassVar[bool] = False
    params_type = RangeParams
    params: RangeParams

    @abstractmethod
    def set_weights(self, student: Student, ctx: Context) -> None:
        """Set the weights of a student whose activation ranges are not known yet."""

    def quantize(self, teacher: nn.Module, source: SampleSource, ctx: Context) -> Student:
        """Make one student; arguments as in `Calibrate.quantize`."""
        (student,) = self.quantize_many(teacher, source, [ctx])
        return cast("Student", student)  # the error of a single student is raised

    def quantize_many(
        self, teacher: nn.Module, source: SampleSource, contexts: Sequence[Context]
    ) -> Sequence[Student | None]:
        """Make one student for each context from the same images; arguments as in `quantize`."""
        images = draw_images(source, self.params, contexts) if has_images(source) else None
        return [ctx.for_student(self._student, teacher, images, ctx) for ctx in contexts]

    def _student(self, teacher: nn.Module, images: Tensor | None, ctx: Context) -> Student:
        student = ctx.prepare(teacher)
        self.set_weights(student, ctx)
        if images is None and self.params.needs_images and self.params.without_images == "noise":
            images = uniform_noise(self.params.noise_images, ctx)
        set_ranges(student, images, self.params.range, ctx)
        return student


def uniform_noise(count: int, ctx: Context) -> Tensor:
    """Return images (count, C, H, W) of uniform noise in [0, 1], equal bits on any device."""
    import torch

    generator = torch.Generator().manual_seed(ctx.seed("uniform noise"))
    return torch.rand((count, *ctx.card.input_size), generator=generator).to(ctx.device)
