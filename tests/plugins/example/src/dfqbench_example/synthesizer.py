"""Makes stripes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from dfqbench.api import Context
from dfqbench.synth import FixedSource

if TYPE_CHECKING:
    from dfqbench_example.method import StripesParams


def stripes(ctx: Context, params: StripesParams) -> FixedSource:
    """Draws `params.images` images with the domain's mean and standard deviation.

    Args:
        ctx: card, device and seeded generator.
        params: hyper-parameters.
    """
    channels, height, width = ctx.card.input_size

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand((params.images, *shape), generator=ctx.generator, device=ctx.device)

    rows = torch.arange(height, device=ctx.device).view(1, 1, -1, 1)
    columns = torch.arange(width, device=ctx.device).view(1, 1, 1, -1)
    angle = 2 * math.pi * uniform(1, 1, 1)
    along = rows * angle.sin() + columns * angle.cos()
    period = 2 + (params.widest - 2) * uniform(1, 1, 1)
    wave = math.sqrt(2) * torch.sin(2 * math.pi * (along / period + uniform(channels, 1, 1)))
    stats = ctx.card.input_stats
    mean, std = (torch.tensor(part, device=ctx.device).view(-1, 1, 1) for part in (stats.mean, stats.std))
    return FixedSource(wave * std + mean)
