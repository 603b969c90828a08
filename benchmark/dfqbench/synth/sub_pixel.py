"""Sub-pixel form of a generator's block: nearest upsampling by two, a 3x3 convolution, BatchNorm, leaky ReLU.

Each output position of the convolution sees a 3x3 window of a map in which every value stands four times, so that its
nine taps fall on four values of the small map. Which four, and which taps meet, depends only on whether row and column
are even or odd: four 2x2 convolutions of the small map give the four sub-pixel phases of the output, with 4/9 of the
multiplications and no copy of the large map.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dfqbench.quant.operators import operator

TAPS = ((1.0, 0.0, 0.0), (0.0, 1.0, 1.0)), ((1.0, 1.0, 0.0), (0.0, 0.0, 1.0))
"""TAPS[a][k][i]: whether tap i of an output row of parity a falls on the k-th of its two small rows."""


def sub_pixel_conv(x: Tensor, weight: Tensor) -> Tensor:
    """Return the four sub-pixel phases of conv2d(upsample(x, 2, nearest), weight, padding=1), side by side.

    `merge_phases` makes the convolution's output of them, equal up to rounding.

    Args:
        x: (N, C, H, W).
        weight: (O, C, 3, 3).

    Returns:
        (N, 4 O, H + 1, W + 1): phase (a, b), the (2 a + b)-th O channels, has the output's positions of parity a, b in
        rows a to a + H - 1 and columns b to b + W - 1; the remaining border is no part of the output.
    """
    outputs, channels = weight.shape[:2]
    # In the weight's memory order, in which sums of taps are a product with a matrix of zeros and ones.
    taps = weight.permute(0, 2, 3, 1).reshape(outputs, 9, channels)
    windows = torch.matmul(_tap_sums(weight.device, weight.dtype), taps)
    windows = windows.view(outputs, 4, 2, 2, channels).transpose(0, 1).reshape(4 * outputs, 2, 2, channels)
    # One convolution for all four: position (p, q) sees rows p - 1 and p, so odd rows lie one further down.
    return F.conv2d(x, windows.permute(0, 3, 1, 2), padding=1)


@cache
def _tap_sums(device: torch.device, dtype: torch.dtype) -> Tensor:
    """(16, 9): for phase (a, b) and its window's place (k, l) the taps of the 3x3 window that meet there."""
    rows = torch.tensor(TAPS, dtype=dtype)
    # Kept: every copy to a device makes the host wait.
    return torch.einsum("aki,blj->abklij", rows, rows).reshape(16, 9).to(device)


@operator
def sub_pixel_norm(phases: Tensor, scale: Tensor, shift: Tensor, eps: float, slope: float) -> Tensor:
    """Return leaky_relu(scale BatchNorm(merged phases) + shift), BatchNorm with the batch's statistics.

    Args:
        phases: (N, 4 C, H + 1, W + 1), as `sub_pixel_conv` returns them.
        scale: (1, C), or for each sample (N, C).
        shift: as `scale`.
        eps: added to the variance.
        slope: negative slope of the leaky ReLU.

    Returns:
        (N, C, 2 H, 2 W), channels-last, in the type of `phases`.
    """
    x = merge_phases(phases)
    if len(scale) == 1:
        return F.leaky_relu_(F.batch_norm(x, None, None, scale[0], shift[0], training=True, eps=eps), slope)
    x = F.batch_norm(x, None, None, training=True, eps=eps)
    return F.leaky_relu_(torch.addcmul(shift[..., None, None], x, scale[..., None, None]), slope).to(phases.dtype)


def merge_phases(phases: Tensor) -> Tensor:
    """Return the map (N, O, 2 H, 2 W), channels-last, whose phases (N, 4 O, H + 1, W + 1) these are."""
    merged: Tensor = _MergePhases.apply(phases)
    return merged


class _MergePhases(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, phases: Tensor) -> Tensor:  # noqa: ARG004 - torch's signature
        count, channels, height, width = phases.shape
        shape = (count, channels // 4, 2 * height - 2, 2 * width - 2)
        out = _empty(shape, phases)
        for small, large in _places(channels // 4, height - 1, width - 1):
            out[large] = phases[small]
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Tensor:  # noqa: ARG004 - torch's signature
        count, channels, height, width = grads[0].shape
        height, width = height // 2, width // 2
        shape = (count, 4 * channels, height + 1, width + 1)
        out = _empty(shape, grads[0]).zero_()
        for small, large in _places(channels, height, width):
            out[small] = grads[0][large]
        return out


def _empty(shape: tuple[int, ...], like: Tensor) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


def _places(channels: int, height: int, width: int) -> list[tuple[tuple[slice, ...], tuple[slice, ...]]]:
    """For each phase its place among the phases and in the merged map."""
    everything = slice(None)
    return [
        (
            (everything, slice(index * channels, (index + 1) * channels), slice(a, a + height), slice(b, b + width)),
            (everything, everything, slice(a, None, 2), slice(b, None, 2)),
        )
        for index, (a, b) in enumerate(((0, 0), (0, 1), (1, 0), (1, 1)))
    ]
