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


class Calibrate(Quantizer):
    """Weights rounded to nearest; activation ranges from one batch.

    The default range rule is ZeroQ's (methods.md 0.1, released code): minimum and maximum, both starting at zero, of a
    forward pass with quantization active.
    """

    name: ClassVar[str] = "calibrate"
    title: ClassVar[str] = "ranges from one batch, no training"
    trains: ClassVar[bool] = False
    params_type = CalibrateParams

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
        name, number = split_range_rule(self.params.range)
        if name == FROM_BATCHNORM:
            return [ctx.for_student(_from_batchnorm, teacher, ctx, number) for ctx in contexts]
        train_source(source, contexts)
        images = source.sample(self.params.images).images
        return [ctx.for_student(_calibrate, teacher, images, ctx, self.params.range) for ctx in contexts]


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


def _calibrate(teacher: nn.Module, images: Tensor, ctx: Context, rule: str) -> Student:
    student = ctx.prepare(teacher)
    learn_ranges(student, images.to(ctx.device), rule)
    return student


def learn_ranges(student: Student, images: Tensor, rule: str) -> None:
    """Learn a student's activation ranges from one batch, with quantization active.

    Args:
        student: its weights are as they will stay.
        images: (N, C, H, W) in normalised input space, on the student's device.
        rule: range rule.
    """
    import torch

    with torch.no_grad(), student.observing(rule):
        student(images.to(memory_format=torch.channels_last))


def _from_batchnorm(teacher: nn.Module, ctx: Context, deviations: float | None) -> Student:
    from dfqbench.quant import set_ranges_from_batchnorm

    student = ctx.prepare(teacher)
    set_ranges_from_batchnorm(student, ctx.card, deviations or BN_DEVIATIONS)
    return student
