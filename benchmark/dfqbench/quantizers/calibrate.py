"""`calibrate`: activation ranges from one batch of images, no training of weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from dfqbench.api.batch import SampleSource, is_live
from dfqbench.api.method import Quantizer
from dfqbench.api.params import param

if TYPE_CHECKING:
    from torch import nn

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
        """Makes the student.

        Args:
            teacher: full-precision network, left as it is.
            source: fixed, or live: then its generator is trained alone first, without losses that need a student.
            ctx: the host's side of the cell.
        """
        import torch

        from dfqbench.quant import prepare
        from dfqbench.synth.plan import is_large

        if is_live(source):
            large = is_large(ctx.card.input_size)
            size = self.params.generator_batch_large if large else self.params.generator_batch
            steps = ctx.budget.training_steps(self.params.generator_steps)
            first = 0
            if ctx.restored is not None:
                source.load_state_dict(ctx.restored["source"])
                first = int(ctx.restored["step"])
            for step in range(first, steps):
                source.train_step(size)
                ctx.progress(step + 1, steps)
                ctx.checkpoint(lambda step=step: {"step": step + 1, "source": source.state_dict()})  # type: ignore[misc]
        images = source.sample(self.params.images).images
        student = prepare(teacher, ctx.scheme, ctx.card)
        with torch.no_grad(), student.observing("minmax"):
            student(images.to(ctx.device, memory_format=torch.channels_last))
        return student
