"""`calibrate`: activation ranges from one batch of images, no training of weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, ClassVar, cast

from pydantic import PositiveInt

from dfqbench.api.batch import SampleSource, is_live
from dfqbench.api.method import Quantizer
from dfqbench.api.params import param
from dfqbench.quant.range_rules import BN_DEVIATIONS, FROM_BATCHNORM, check_range_rule, split_range_rule

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dfqbench.api.context import Context
    from dfqbench.quant import Student


@dataclass(frozen=True)
class CalibrateParams:
    """Hyper-parameters of `calibrate`."""

    images: PositiveInt = param(
        64, help="images that the ranges are taken from, in one batch", source="released code (ZeroQ)"
    )
    range: str = param(
        "minmax",
        help="range rule: `minmax`, from zero; `mean` of the images' extremes; `percentile`; `mse`, of least error; "
        "`sigma`, standard deviations; `bn`, from BatchNorm without images; or a plugin's",
        source="released code (ZeroQ)",
    )

    def __post_init__(self) -> None:
        """Refuse an unknown range rule, and one that needs many batches."""
        check_range_rule(self.range, steps=1, needs_batches=False)

    @property
    def needs_images(self) -> bool:
        """Whether the range rule learns from images."""
        return split_range_rule(self.range)[0] != FROM_BATCHNORM


class Calibrate(Quantizer):
    """Weights rounded to nearest; activation ranges from one batch.

    The default range rule is ZeroQ's (methods.md 0.1, released code): minimum and maximum, both starting at zero, of a
    forward pass with quantization active.
    """

    name: ClassVar[str] = "calibrate"
    title: ClassVar[str] = "ranges from one batch, no training"
    trains: ClassVar[bool] = False
    params_type = CalibrateParams
    params: CalibrateParams

    def quantize(self, teacher: nn.Module, source: SampleSource, ctx: Context) -> Student:
        """Make one student.

        Args:
            teacher: full-precision network, left as it is.
            source: fixed, or live: its generator is first trained alone, without losses that need a student.
            ctx: the host's side of the cell.
        """
        (student,) = self.quantize_many(teacher, source, [ctx])
        return cast("Student", student)  # the error of a single student is raised

    def quantize_many(
        self, teacher: nn.Module, source: SampleSource, contexts: Sequence[Context]
    ) -> Sequence[Student | None]:
        """Make one student for each context from the same images; arguments as in `quantize`.

        With range rule `bn` the source is neither trained nor drawn from.
        """
        images = draw_images(source, self.params, contexts)
        return [ctx.for_student(self._student, teacher, images, ctx) for ctx in contexts]

    def _student(self, teacher: nn.Module, images: Tensor | None, ctx: Context) -> Student:
        student = ctx.prepare(teacher)
        set_ranges(student, images, self.params.range, ctx)
        return student


def draw_images(source: SampleSource, params: CalibrateParams, contexts: Sequence[Context]) -> Tensor | None:
    """Return the images (N, C, H, W) that ranges are learned from; None: the range rule needs none.

    A live source is trained first (see `train_source`).
    """
    if not params.needs_images:
        return None
    train_source(source, contexts)
    return source.sample(params.images).images


def train_source(source: SampleSource, contexts: Sequence[Context]) -> None:
    """Train a live source alone, without losses that need a student; leave a fixed one as it is.

    For quantizers that only draw images: before it is trained, a generator's images are worth nothing. An interrupted
    run goes on from the last checkpoint.

    Args:
        source: the source; call its `sample` afterwards.
        contexts: one for each student that the source serves.
    """
    if not is_live(source):
        return
    size, total, first = source.batch_size, source.training_steps, 0

    def report(ctx: Context, step: int) -> None:
        ctx.progress(step, total)
        ctx.checkpoint(lambda: {"step": step, "source": source.state_dict()})

    states = [ctx.for_student(attrgetter("restored"), ctx) for ctx in contexts]
    state = next((state for state in states if state is not None), None)
    if state is not None:
        source.load_state_dict(state["source"])
        first = int(state["step"])
    for step in range(first, total):
        source.train_step(size)
        for ctx in contexts:
            ctx.for_student(report, ctx, step + 1)


def set_ranges(student: Student, images: Tensor | None, rule: str, ctx: Context) -> None:
    """Set a student's activation ranges: from images by the range rule, or without any from BatchNorm.

    Args:
        student: its weights are as they will stay.
        images: (N, C, H, W) in normalised input space, one batch; None: there are none.
        rule: range rule; without images only the number of `bn` matters.
        ctx: the host's side of the cell.
    """
    import torch

    from dfqbench.quant import set_ranges_from_batchnorm

    name, number = split_range_rule(rule)
    if images is None:
        set_ranges_from_batchnorm(student, ctx.card, (number if name == FROM_BATCHNORM else None) or BN_DEVIATIONS)
        return
    with torch.no_grad(), student.observing(rule):
        student(images.to(ctx.device, memory_format=torch.channels_last))
