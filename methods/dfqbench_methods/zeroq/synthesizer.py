"""ZeroQ's distillation of images (methods.md 1; read in the released code of amirgholami/ZeroQ)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dfqbench.api import Context
from dfqbench.synth import (
    AdamOnPlateau,
    BatchNormStatistics,
    FixedSource,
    Moments,
    optimize_images,
    positions,
    sample_moments,
    unbiased,
    zeroq_loss,
)

if TYPE_CHECKING:
    from dfqbench_methods.zeroq.plugin import ZeroQParams

UNIFORM_VARIANCE = 5418.75
"""Variance of U(-128, 127), by which the released code divides (methods.md 1a)."""


def initial_noise(shape: tuple[int, ...], variant: str, generator: torch.Generator) -> Tensor:
    """Return U{0..254} - 127.5, divided by the variance 5418.75 (`released`) or by its root (`intended`)."""
    pixels = torch.randint(0, 255, shape, generator=generator, device=generator.device, dtype=torch.float32)
    return (pixels - 127.5) / (UNIFORM_VARIANCE if variant == "released" else UNIFORM_VARIANCE**0.5)


def synthesize(teacher: nn.Module, ctx: Context, p: ZeroQParams) -> FixedSource:
    """Distill `p.images` images, `p.batch` at a time."""
    stats = ctx.card.target_stats(p.input_target)
    mean, std = (torch.tensor(values, device=ctx.device).view(-1, 1, 1) for values in (stats.mean, stats.std))
    target = Moments(mean.flatten(), std.flatten().square())

    with BatchNormStatistics(teacher) as recorder:

        def loss(images: Tensor) -> Tensor:
            with ctx.autocast():
                teacher(images)
            return zeroq_loss(recorder.last, unbiased(sample_moments(images), positions(images)), target, p.eps)

        def start(size: int) -> AdamOnPlateau:
            images = initial_noise((size, *ctx.card.input_size), p.init, ctx.generator) * std + mean
            return AdamOnPlateau(
                ctx, images, loss, lr=p.lr, factor=p.plateau_factor, patience=p.plateau_patience, min_lr=p.min_lr
            )

        return optimize_images(
            teacher, ctx, start, count=p.images, batch=p.batch, iterations=p.iterations, what="zeroq"
        )
