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


def synthesize(teacher: nn.Module, ctx: Context, params: ZeroQParams) -> FixedSource:
    """Distill `params.images` images, `params.batch` at a time."""
    stats = ctx.card.target_stats(params.input_target)
    mean, std = (torch.tensor(values, device=ctx.device) for values in (stats.mean, stats.std))
    target = Moments(mean, std.square())
    steps = ctx.budget.image_steps(params.iterations)

    with BatchNormStatistics(teacher) as watch:

        def loss(images: Tensor) -> Tensor:
            with ctx.autocast():
                teacher(images)
            image = unbiased(sample_moments(images), positions(images))
            return zeroq_loss(watch.last, image, target, params.eps)

        def start(size: int) -> AdamOnPlateau:
            noise = initial_noise((size, *ctx.card.input_size), params.init, ctx.generator)
            images = noise * std.view(-1, 1, 1) + mean.view(-1, 1, 1)
            factor, patience = params.plateau_factor, params.plateau_patience
            return AdamOnPlateau(
                ctx, images, loss, lr=params.lr, factor=factor, patience=patience, min_lr=params.min_lr
            )

        return optimize_images(teacher, ctx, start, count=params.images, batch=params.batch, steps=steps, what="zeroq")
