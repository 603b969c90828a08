"""A quantizer: ranges from a single image."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dfqbench.api import Context, Quantizer, SampleSource

if TYPE_CHECKING:
    from torch import nn

    from dfqbench.quant import Student


class OneImage(Quantizer):
    """Takes minimum and maximum of every activation over one image."""

    name = "one-image"
    title = "ranges from a single image"
    trains = False

    def quantize(self, teacher: nn.Module, source: SampleSource, ctx: Context) -> Student:
        """Makes the student."""
        import torch

        from dfqbench.quantizers import train_source

        train_source(source, [ctx])
        student = ctx.prepare(teacher)
        with torch.no_grad(), student.observing("minmax"):
            student(source.sample(1).images.to(ctx.device))
        return student
