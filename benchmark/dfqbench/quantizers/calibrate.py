"""`calibrate`: activation ranges from one batch of images, no training of weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, ClassVar, cast

from pydantic import NonNegativeInt, PositiveInt

from dfqbench.api.batch import LiveSource, SampleSource, is_live
from dfqbench.api.method import Quantizer
from dfqbench.api.params import param

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
    generator_steps: NonNegativeInt = param(
        80_000,
        help="steps for which a live source trains alone before it is drawn from; scaled by the budget",
        source="released code (GDFQ: 400 epochs of 200 iterations)",
        unit="steps",
    )
    generator_batch: PositiveInt = param(
        200,
        help="batch of a live source trained alone, for inputs up to 64 pixels",
        source="released code (GDFQ)",
        unit="images",
    )
    generator_batch_large: PositiveInt = param(
        16, help="the same for larger inputs", source="released code (GDFQ)", unit="images"
    )


class Calibrate(Quantizer):
    """Weights rounded to nearest; activation ranges from one batch.

    The range rule is ZeroQ's (methods.md 0.1, released code): minimum and maximum, both starting at zero, of a forward
    pass with quantization active.
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
        """Make one student for each context from the same images; arguments as in `quantize`."""
        if is_live(source):
            self._train_generator(source, contexts)
        images = source.sample(self.params.images).images
        return [ctx.for_student(_calibrate, teacher, images, ctx) for ctx in contexts]

    def _train_generator(self, source: LiveSource, contexts: Sequence[Context]) -> None:
        from dfqbench.synth.params import is_large

        card, budget = contexts[0].card, contexts[0].budget
        size = self.params.generator_batch_large if is_large(card.input_size) else self.params.generator_batch
        steps = budget.training_steps(self.params.generator_steps)

        def report(ctx: Context, step: int) -> None:
            ctx.progress(step, steps)
            ctx.checkpoint(lambda: {"step": step, "source": source.state_dict()})

        first = 0
        states = [ctx.for_student(attrgetter("restored"), ctx) for ctx in contexts]
        state = next((state for state in states if state is not None), None)
        if state is not None:
            source.load_state_dict(state["source"])
            first = int(state["step"])
        for step in range(first, steps):
            source.train_step(size)
            for ctx in contexts:
                ctx.for_student(report, ctx, step + 1)


def _calibrate(teacher: nn.Module, images: Tensor, ctx: Context) -> Student:
    import torch

    student = ctx.prepare(teacher)
    with torch.no_grad(), student.observing("minmax"):
        student(images.to(ctx.device, memory_format=torch.channels_last))
    return student
