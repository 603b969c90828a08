"""First and second moments of feature maps: one fused operation, with a gradient that is one pass over the map."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

CHUNK = 1 << 20
"""Elements centred at a time on the CPU: the temporary stays in cache instead of costing fresh pages."""


@dataclass(frozen=True, slots=True)
class Moments:
    """Mean and variance per channel.

    Attributes:
        mean: (..., C).
        var: (..., C); biased or not as the producer says.
    """

    mean: Tensor
    var: Tensor

    def detach(self) -> Moments:
        """The same values without a graph."""
        return Moments(self.mean.detach(), self.var.detach())


def _as_rows(x: Tensor) -> tuple[Tensor, int]:
    """A view of `x` as three dimensions, and the one of them that runs over positions."""
    if x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last):
        return x.permute(0, 2, 3, 1).flatten(1, 2), 1
    return x.flatten(2) if x.ndim > 2 else x.unsqueeze(2), 2


class _SampleMoments(torch.autograd.Function):
    """x -> mean and biased variance over positions, for each sample and channel."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        rows, dim = _as_rows(x)
        if x.is_cuda:
            var, mean = torch.var_mean(rows, dim, correction=0)
        else:
            mean = rows.mean(dim, keepdim=True)
            var = rows.new_empty(mean.shape)
            chunk = max(1, CHUNK // max(1, rows[0].numel()))
            for start in range(0, rows.shape[0], chunk):
                part = slice(start, start + chunk)
                torch.mean((rows[part] - mean[part]).square_(), dim, keepdim=True, out=var[part])
            mean, var = mean.squeeze(dim), var.squeeze(dim)
        ctx.save_for_backward(x, mean)
        ctx.positions = rows.shape[dim]
        return mean, var

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        # d mean / dx = 1/M and d var / dx = 2 (x - mean) / M: together one affine map of x per sample and channel.
        x, mean = ctx.saved_tensors
        grad_mean, grad_var = grads
        slope = grad_var * (2.0 / ctx.positions)
        offset = grad_mean / ctx.positions - slope * mean
        shape = (*mean.shape, *(1,) * (x.ndim - 2))
        return torch.addcmul(offset.view(shape), slope.view(shape), x, out=torch.empty_like(x))


def sample_moments(x: Tensor) -> Moments:
    """Mean and *biased* variance over positions, for each sample and channel.

    Args:
        x: (N, C, ...) feature maps; (N, C) counts as one position.

    Returns:
        Moments of shape (N, C). Only first derivatives are available.
    """
    mean, var = _SampleMoments.apply(x)
    return Moments(mean, var)


def positions(x: Tensor) -> int:
    """Spatial positions of feature maps (N, C, ...)."""
    return x[0, 0].numel()


def unbiased(moments: Moments, count: int) -> Moments:
    """Turns biased into unbiased variance; leaves it biased where `count` is 1.

    Args:
        moments: biased moments over `count` values.
        count: values behind each variance. The unbiased variance of one value is NaN (methods.md 0.5).
    """
    return moments if count == 1 else Moments(moments.mean, moments.var * (count / (count - 1)))


def batch_moments(moments: Moments) -> Moments:
    """Pools per-sample moments into those of the batch, as BatchNorm's training mode computes them.

    Args:
        moments: biased moments (N, C) over equally many positions for each sample.

    Returns:
        Mean and biased variance (C,) over samples and positions, from the law of total variance.
    """
    mean = moments.mean.mean(0)
    return Moments(mean, moments.var.mean(0) + (moments.mean - mean).square().mean(0))
