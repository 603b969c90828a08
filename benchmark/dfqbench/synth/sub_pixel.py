"""Sub-pixel form of a generator's block: nearest upsampling by two, a 3x3 convolution, BatchNorm, leaky ReLU.

The upsampled map holds every value four times, so that the nine taps of the convolution fall on four values of the
small map. Which four depends only on the parities of row and column: four 2x2 convolutions of the small map give the
four sub-pixel phases of the output, with 4/9 of the multiplications and without the large map.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dfqbench.quant.operators import operator

TAPS = ((1.0, 0.0, 0.0), (0.0, 1.0, 1.0)), ((1.0, 1.0, 0.0), (0.0, 0.0, 1.0))
"""TAPS[a][k][i]: 1 where tap i of an output row of parity a falls on the k-th of its two small rows."""


def sub_pixel_conv(x: Tensor, weight: Tensor) -> Tensor:
    """Return the sub-pixel phases of conv2d(upsample(x, 2, nearest), weight, padding=1), for `merge_phases`.

    Returns:
        (N, 4 O, H + 1, W + 1): phase (a, b), the (2 a + b)-th O channels, has the output's positions of parity a, b in
        rows a to a + H - 1 and columns b to b + W - 1; the remaining border is not in the output.
    """
    outputs, channels = weight.shape[:2]
    # In the weight's memory order, so that sums of taps are a product with a matrix of zeros and ones.
    taps = weight.permute(0, 2, 3, 1).reshape(outputs, 9, channels)
    windows = torch.matmul(_tap_sums(weight.device, weight.dtype), taps)
    windows = windows.view(outputs, 4, 2, 2, channels).transpose(0, 1).reshape(4 * outputs, 2, 2, channels)
    # One convolution for all four: position (p, q) reads rows p - 1 and p, so odd rows lie one further down.
    return F.conv2d(x, windows.permute(0, 3, 1, 2), padding=1)


@cache
def _tap_sums(device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return the matrix (16, 9) of the taps of the 3x3 window that fall on value (k, l) of phase (a, b)'s window."""
    # Cached: every copy to a device makes the host wait.
    rows = torch.tensor(TAPS, dtype=dtype)
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
        out = _empty((count, channels // 4, 2 * height - 2, 2 * width - 2), phases)
        for phase, merged in _slices(channels // 4, height - 1, width - 1):
            out[merged] = phases[phase]
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Tensor:  # noqa: ARG004 - torch's signature
        count, channels, height, width = grads[0].shape
        out = _empty((count, 4 * channels, height // 2 + 1, width // 2 + 1), grads[0]).zero_()
        for phase, merged in _slices(channels, height // 2, width // 2):
            out[phase] = grads[0][merged]
        return out


def _empty(shape: tuple[int, ...], like: Tensor) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


def _slices(channels: int, height: int, width: int) -> Iterator[tuple[tuple[slice, ...], tuple[slice, ...]]]:
    """Return the slices of each phase (a, b) among the phases and in the merged map."""
    for index, (a, b) in enumerate(((0, 0), (0, 1), (1, 0), (1, 1))):
        of_phase = slice(index * channels, (index + 1) * channels)
        phase = slice(None), of_phase, slice(a, a + height), slice(b, b + width)
        yield phase, (slice(None), slice(None), slice(a, None, 2), slice(b, None, 2))
