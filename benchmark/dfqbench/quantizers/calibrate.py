"""`calibrate`: activation ranges from one batch of images, no training of weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

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

    images: int = param(64, help="images that the ranges are taken from, in one batch", source="released code (ZeroQ)")
    generator_steps: int = param(
        80_000,
        help="steps for which a live source trains alone before it is drawn from; scaled by the budget",
        source="released code (GDFQ: 400 epochs of 200 iterations)",
        unit="steps",
    )
    generator_batch: int = param(
        200,
        help="batch of a live source trained alone, for inputs up to 64 pixels",
        source="released code (GDFQ)",
        unit="images",
    )
    generator_batch_large: int = param(
        16, help="the same for larger inputs", source="released code (GDFQ)", unit="images"
    )


class Calibrate(Quantizer):
    """Weights rounded to nearest, activation ranges the minimum and maximum (from zero) over one batch.

    The range rule is ZeroQ's (methods.md 0.1, released code): minimum and maximum both start at zero, one forward
    pass, quantization active while it runs.
    """

    name: ClassVar[str] = "calibrate"
    title: ClassVar[str] = "ranges from one batch, no training"
    trains: ClassVar[bool] = False
    params_type = CalibrateParams

    def quantize(self, teacher: nn.Module, source: SampleSource, ctx: Context) -> Student:
        """Make one student.

        Args:
            teacher: full-precision network, left as it is.
            source: fixed, or live: then its generator is trained alone first, without losses that need a student.
            ctx: the host's side of the cell.
        """
        (student,) = self.quantize_many(teacher, source, [ctx])
        return cast("Student", student)  # the error of a single student is raised

    def quantize_many(
        self, teacher: nn.Module, source: SampleSource, contexts: Sequence[Context]
    ) -> Sequence[Student | None]:
        """Make one student for each context from the same images; arguments as in `quantize`."""
        if is_live(source):
            self._train(source, contexts)
        images = source.sample(self.params.images).images
        return [ctx.for_student(_calibrated, teacher, images, ctx) for ctx in contexts]

    def _train(self, source: LiveSource, contexts: Sequence[Context]) -> None:
        """Train the generator alone."""
        from dfqbench.synth.params import is_large

        card, budget = contexts[0].card, contexts[0].budget
        size = self.params.generator_batch_large if is_large(card.input_size) else self.params.generator_batch
        steps = budget.training_steps(self.params.generator_steps)

        def report(ctx: Context, step: int) -> None:
            ctx.progress(step, steps)
            ctx.checkpoint(lambda: {"step": step, "source": source.state_dict()})

        states = [ctx.for_student(_restored, ctx) for ctx in contexts]
        state = next((state for state in states if state is not None), None)
        if state is not None:
            source.load_state_dict(state["source"])
        for step in range(0 if state is None else int(state["step"]), steps):
            source.train_step(size)
            for ctx in contexts:
                ctx.for_student(report, ctx, step + 1)


def _restored(ctx: Context) -> dict[str, Any] | None:
    return ctx.restored


def _calibrated(teacher: nn.Module, images: Tensor, ctx: Context) -> Student:
    import torch

    from dfqbench.quant import prepare

    student = prepare(teacher, ctx.scheme, ctx.card)
    with torch.no_grad(), student.observing("minmax"):
        student(images.to(ctx.device, memory_format=torch.channels_last))
    return student
