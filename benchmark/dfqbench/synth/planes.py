"""BatchNorm over the batch, without parameters, of maps of few channels on a GPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

OVER = (0, 2, 3)
"""Samples and positions."""


def standardised(x: Tensor, eps: float) -> Tensor:
    """(x - mean) / sqrt(var + eps) for each channel, var biased.

    Equal to torch's BatchNorm up to rounding; that runs one block of threads a channel, which for three of them leaves
    a GPU idle. First derivatives only.

    Args:
        x: (N, C, H, W), float32.
        eps: added to the variance.
    """
    found: Tensor = _Standardised.apply(x, eps)
    return found


class _Standardised(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float) -> Tensor:
        var, mean = torch.var_mean(x, OVER, correction=0, keepdim=True)
        inverse = torch.rsqrt(var + eps)
        out = (x - mean).mul_(inverse)
        ctx.save_for_backward(out, inverse)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        out, inverse = ctx.saved_tensors
        # With z the output and g its gradient: (g - mean(g) - z mean(g z)) / deviation.
        of_gz = (grads[0] * out).mean(OVER, keepdim=True)
        return (grads[0] - grads[0].mean(OVER, keepdim=True)).addcmul_(out, of_gz, value=-1).mul_(inverse), None
