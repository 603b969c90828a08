"""Base of the quantizers that set weights without training; activation ranges come from images, or from none."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, cast

from pydantic import PositiveInt

from dfqbench.api import Quantizer, has_images, param
from dfqbench.quant import check_range_rule
from dfqbench.quantizers.calibrate import train_source

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dfqbench.api.batch import SampleSource
    from dfqbench.api.context import Context
    from dfqbench.quant import Student


@dataclass(frozen=True)
class RangeParams:
    """Where a quantizer of weights takes the activation ranges from."""

    images: PositiveInt = param(
        64, help="images of the source that the ranges are taken from, in one batch", source="released code (ZeroQ)"
    )
    range_rule: str = param("minmax", help="range rule for the images", source="released code (ZeroQ)")
    ranges: Literal["bn", "noise"] = param(
        "bn",
        help="ranges without images: `bn`, from BatchNorm's parameters; `noise`, from uniform noise",
        source="a choice of this benchmark: SQuant's code has `noise`, DFQ's paper `bn`",
    )
    noise_images: PositiveInt = param(
        256, help="images of uniform noise in [0, 1], not normalised", source="released code (SQuant)", unit="images"
    )

    def __post_init__(self) -> None:
        """Refuse an unknown range rule, and one that needs many batches."""
        check_range_rule(self.range_rule, steps=1)


class WeightQuantizer(Quantizer):
    """A quantizer that sets the student's weights from the teacher alone, in seconds.

    Derive from it and write `set_weights`. With a source of images the activation ranges are those of `calibrate` for
    the new weights, without images they follow the parameter `ranges`.
    """

    trains: ClassVar[bool] = False
    params_type = RangeParams
    params: RangeParams

    @abstractmethod
    def set_weights(self, student: Student) -> None:
        """Set the weights of a student whose activation ranges are not known yet."""

    def quantize(self, teacher: nn.Module, source: SampleSource, ctx: Context) -> Student:
        """Make one student; arguments as in `Calibrate.quantize`."""
        (student,) = self.quantize_many(teacher, source, [ctx])
        return cast("Student", student)  # the error of a single student is raised

    def quantize_many(
        self, teacher: nn.Module, source: SampleSource, contexts: Sequence[Context]
    ) -> Sequence[Student | None]:
        """Make one student for each context from the same images; arguments as in `quantize`."""
        train_source(source, contexts)
        images = source.sample(self.params.images).images if has_images(source) else None
        return [ctx.for_student(self._student, teacher, images, ctx) for ctx in contexts]

    def _student(self, teacher: nn.Module, images: Tensor | None, ctx: Context) -> Student:
        from dfqbench.quant import set_ranges_from_batchnorm
        from dfqbench.quantizers.calibrate import learn_ranges

        student = ctx.prepare(teacher)
        self.set_weights(student)
        if images is not None:
            learn_ranges(student, images.to(ctx.device), self.params.range_rule)
        elif self.params.ranges == "bn":
            set_ranges_from_batchnorm(student, ctx.card)
        else:
            learn_ranges(student, uniform_noise(self.params.noise_images, ctx), self.params.range_rule)
        return student


def uniform_noise(count: int, ctx: Context) -> Tensor:
    """Return images (count, C, H, W) of uniform noise in [0, 1], equal bits on any device."""
    import torch

    generator = torch.Generator().manual_seed(ctx.seed("uniform noise"))
    return torch.rand((count, *ctx.card.input_size), generator=generator).to(ctx.device)
