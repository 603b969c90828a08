"""First and second moments of feature maps: one fused operation, with a gradient that is one pass over the map."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dfqbench.api.numerics import chunks, widened
from dfqbench.native import batch, passes


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


def moments_of(x: Tensor) -> Moments:
    """As `sample_moments`, without a graph; float32 at least."""
    if passes.fits(x):
        return Moments(*passes.moments(x))
    rows, dim = _as_rows(x)
    wide = torch.promote_types(x.dtype, torch.float32)
    if x.is_cuda:
        var, mean = torch.var_mean(widened(rows), dim, correction=0)
        return Moments(mean, var)
    mean = rows.new_empty([1 if d == dim else n for d, n in enumerate(rows.shape)], dtype=wide)
    var = torch.empty_like(mean)
    for part in chunks(rows):
        # A narrow map is widened while it is in cache; a wide one is left alone.
        some = widened(rows[part])
        torch.mean(some, dim, keepdim=True, out=mean[part])
        torch.mean((some - mean[part]).square_(), dim, keepdim=True, out=var[part])
    return Moments(mean.squeeze(dim), var.squeeze(dim))


def moments_gradient(x: Tensor, mean: Tensor, to_mean: Tensor, to_var: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient of moments in the map is slope * x + offset.

    d mean / dx = 1/M and d var / dx = 2 (x - mean) / M over M positions.

    Args:
        x: (N, C, ...).
        mean: (N, C).
        to_mean: gradient at the means (N, C).
        to_var: gradient at the variances (N, C).

    Returns:
        Slope and offset (N, C, 1, ...).
    """
    count = positions(x)
    if passes.fits_moments(mean, to_mean, to_var):
        slope, offset = passes.moments_gradient(mean, to_mean, to_var, count)
    else:
        slope = to_var * (2.0 / count)
        offset = to_mean / count - slope * mean
    shape = (*mean.shape, *(1,) * (x.ndim - 2))
    return slope.view(shape), offset.view(shape)


class _SampleMoments(torch.autograd.Function):
    """x -> mean and biased variance over positions, for each sample and channel."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        moments = moments_of(x)
        ctx.save_for_backward(x, moments.mean)
        return moments.mean, moments.var

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        x, mean = ctx.saved_tensors
        slope, offset = moments_gradient(x, mean, grads[0], grads[1])
        if passes.fits(x):
            return passes.moments_backward(x, slope, offset)
        out = torch.empty_like(x)
        if x.dtype == mean.dtype:
            return torch.addcmul(offset, slope, x, out=out)
        for part in chunks(x):
            out[part] = torch.addcmul(offset[part], slope[part], x[part].to(mean.dtype))
        return out


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
    if batch.fits(moments.mean, moments.var):
        return Moments(*_BatchMoments.apply(moments.mean, moments.var))
    mean = moments.mean.mean(0)
    return Moments(mean, moments.var.mean(0) + (moments.mean - mean).square().mean(0))


class _BatchMoments(torch.autograd.Function):
    """Samples' means and variances (N, C) -> those of the batch (C,)."""

    @staticmethod
    def forward(ctx: Any, means: Tensor, variances: Tensor) -> tuple[Tensor, Tensor]:
        mean, var = batch.moments(means, variances)
        ctx.save_for_backward(means, mean)
        return mean, var

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        means, mean = ctx.saved_tensors
        if torch.is_grad_enabled():
            # A second derivative is asked for.
            of_mean, of_var = (grad / len(means) for grad in grads)
            return of_mean + 2.0 * of_var * (means - mean), of_var.expand_as(means)
        return batch.moments_backward(means, mean, grads[0], grads[1])
