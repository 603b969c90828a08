"""A frozen BatchNorm layer together with the moments of its input: one pass over the map instead of three."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dfqbench.api.numerics import chunks
from dfqbench.native import passes
from dfqbench.quant.frozen import affine_of
from dfqbench.synth.moments import Moments, moments_gradient, moments_of


def can_watch(layer: nn.Module, x: Tensor) -> bool:
    """Whether `watched_batchnorm` computes what the layer does: a plain, frozen BatchNorm in eval mode."""
    return (
        type(layer) is nn.BatchNorm2d
        and not layer.training
        and layer.running_mean is not None
        and layer.weight is not None
        and not layer.weight.requires_grad
        and x.ndim == 4
    )


def watched_batchnorm(x: Tensor, layer: nn.BatchNorm2d) -> tuple[Tensor, Moments]:
    """The layer's output and the moments of its input, equal to the separate computation up to rounding.

    Args:
        x: (N, C, H, W), the layer's input.
        layer: as `can_watch` asks.

    Returns:
        The output, in the type of `x`, and biased moments (N, C) of each sample over positions.

    Raises:
        ValueError: the layer keeps no running statistics.
    """
    scale, shift = affine_of_layer(layer)
    out, mean, var = _WatchedBatchNorm.apply(x, scale.view(1, -1, 1, 1), shift.view(1, -1, 1, 1))
    return out, Moments(mean, var)


def affine_of_layer(layer: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Scale and shift (C,) that a BatchNorm layer in eval mode amounts to.

    Raises:
        ValueError: the layer keeps no running statistics.
    """
    if layer.running_mean is None or layer.running_var is None:
        raise ValueError("the layer keeps no running statistics")
    return affine_of(layer.weight, layer.bias, (layer.running_mean, layer.running_var, layer.eps))[:2]


class _WatchedBatchNorm(torch.autograd.Function):
    """x -> scale x + shift, and mean and biased variance of x over positions for each sample and channel."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if passes.fits(x):
            out, mean, var = passes.block_forward(x, (scale, shift))
            ctx.save_for_backward(x, mean, scale, shift)
            return out, mean, var
        out = torch.empty_like(x)
        means, variances = [], []
        for part in chunks(x):
            # Widened once, while the map is in cache, for both purposes.
            some = x[part].to(scale.dtype)
            found = moments_of(some)
            means.append(found.mean)
            variances.append(found.var)
            out[part] = torch.addcmul(shift, some, scale)
        mean, var = torch.cat(means), torch.cat(variances)
        ctx.save_for_backward(x, mean, scale, shift)
        return out, mean, var

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        x, mean, scale, shift = ctx.saved_tensors
        slope, offset = moments_gradient(x, mean, grads[1], grads[2])
        if passes.fits(x):
            return passes.block_backward(x, grads[0], (scale, shift), (slope, offset))[0], None, None
        out = torch.empty_like(x)
        for part in chunks(x):
            moved = torch.addcmul(offset[part], slope[part], x[part].to(scale.dtype))
            out[part] = moved.addcmul_(grads[0][part].to(scale.dtype), scale)
        return out, None, None
