"""First and second moments of feature maps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dfqbench.api.precision import to_float32
from dfqbench.quant.operators import operator


@dataclass(frozen=True, slots=True)
class Moments:
    """Mean and variance (..., C) per channel."""

    mean: Tensor
    var: Tensor


@operator
def batch_norm_stats(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance over positions, for each sample and channel.

    Args:
        x: (N, C, ...); (N, C) counts as one position.

    Returns:
        Mean and variance (N, C), at least float32. First derivatives only.
    """
    mean, var = _BatchNormStats.apply(x)
    return mean, var


class _BatchNormStats(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        # Channels-last maps in memory order: (N, positions, C).
        channels_last = x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)
        rows = x.permute(0, 2, 3, 1).flatten(1, 2) if channels_last else x.view(*x.shape[:2], -1)
        dim = 1 if channels_last else 2
        rows = to_float32(rows)
        mean = rows.mean(dim, keepdim=True)
        var = (rows - mean).square_().mean(dim)
        mean = mean.squeeze(dim)
        ctx.save_for_backward(x, mean)
        return mean, var

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        # Over M positions d mean / dx = 1 / M and d var / dx = 2 (x - mean) / M: slope x + offset.
        x, mean = ctx.saved_tensors
        count = positions(x)
        slope = grads[1] * (2.0 / count)
        offset = grads[0] / count - slope * mean
        shape = (*mean.shape, *(1,) * (x.ndim - 2))
        return torch.addcmul(offset.view(shape), slope.view(shape), to_float32(x)).to(x.dtype)


def sample_moments(x: Tensor) -> Moments:
    """Return moments (N, C), variance biased, of feature maps (N, C, ...) over positions (see `batch_norm_stats`)."""
    return Moments(*batch_norm_stats(x))


def positions(x: Tensor) -> int:
    """Return the number of spatial positions of feature maps (N, C, ...)."""
    return x[0, 0].numel()


def unbiased(moments: Moments, count: int) -> Moments:
    """Make biased variances over `count` values unbiased; that of one value, which would be NaN, stays 0."""
    return moments if count == 1 else Moments(moments.mean, moments.var * (count / (count - 1)))


def batch_moments(moments: Moments) -> Moments:
    """Pool biased moments (N, C) of samples into those (C,) of the batch, by the law of total variance.

    They are those of BatchNorm's training mode; each sample has equally many positions.
    """
    mean = moments.mean.mean(0)
    return Moments(mean, moments.var.mean(0) + (moments.mean - mean).square().mean(0))
