"""Nearest upsampling by two followed by a 3x3 convolution, without the upsampled map.

Each output position sees a 3x3 window of a map in which every value stands twice (four times in the plane), so that its
nine taps fall on four values of the small map. Which four, and which taps meet, depends only on whether row and column
are even or odd: four 2x2 convolutions of the small map give the four phases of the output, with 4/9 of the
multiplications and no copy of the large map. The library for CPUs needs 1/4 (see `native.upsampled`).
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dfqbench.native import upsampled

TAPS = ((1.0, 0.0, 0.0), (0.0, 1.0, 1.0)), ((1.0, 1.0, 0.0), (0.0, 0.0, 1.0))
"""TAPS[a][k][i]: whether tap i of an output row of parity a falls on the k-th of its two small rows."""
SUMS = (1.0, 1.0, 1.0), (-1.0, 0.0, 0.0), (0.0, 0.0, 1.0)
"""SUMS[r][i]: how tap i counts in a row's r-th sum."""
PAIRS = (0, 0), (1, 0), (2, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 1), (2, 2)
"""A row's and a column's sum, in the order of `native.upsampled`."""


def phases_of_conv(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The four phases of conv2d(upsample(x, 2, nearest), weight, bias, padding=1), one beside the other.

    `weave` makes the convolution's output of them, equal up to rounding. First derivatives only, where the
    library for CPUs computes it.

    Args:
        x: (N, C, H, W).
        weight: (O, C, 3, 3).
        bias: (O,), or None: 0.

    Returns:
        (N, 4 O, H + 1, W + 1): phase (a, b), the (2 a + b)-th O channels, has the output's positions of parity a, b in
        rows a to a + H - 1 and columns b to b + W - 1; what is beside them has no place in the output.
    """
    outputs, channels = weight.shape[:2]
    # In the weight's memory order, in which sums of a window's places are a product of the whole one with 0, 1 and -1.
    whole = weight.permute(0, 2, 3, 1).reshape(outputs, 9, channels)
    if bias is None and upsampled.fits(x, weight):
        sums = torch.matmul(_sums(weight.device, weight.dtype), whole)
        found: Tensor = _Phases.apply(x, sums.transpose(0, 1))
        return found
    window = torch.matmul(_taps(weight.device, weight.dtype), whole)
    phases = window.view(outputs, 4, 2, 2, channels).transpose(0, 1).reshape(4 * outputs, 2, 2, channels)
    # One convolution for all four: position (p, q) sees rows p - 1 and p, so odd rows are taken one further down.
    return F.conv2d(x, phases.permute(0, 3, 1, 2), None if bias is None else bias.repeat(4), padding=1)


@cache
def _taps(device: torch.device, dtype: torch.dtype) -> Tensor:
    """(16, 9): for phase (a, b) and its window's place (k, l) which of the whole window's places fall there."""
    rows = torch.tensor(TAPS, dtype=dtype)
    # Once: every copy to a device makes the host wait for it.
    return torch.einsum("aki,blj->abklij", rows, rows).reshape(16, 9).to(device)


@cache
def _sums(device: torch.device, dtype: torch.dtype) -> Tensor:
    """(9, 9): for each of the pairs how the whole window's places count in it."""
    sums = torch.tensor(SUMS, dtype=dtype)
    return torch.stack([torch.outer(sums[row], sums[column]).flatten() for row, column in PAIRS]).to(device)


class _Phases(torch.autograd.Function):
    """x (N, C, H, W), sums (9, O, C) -> phases (N, 4 O, H + 1, W + 1)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, sums: Tensor) -> Tensor:
        ctx.save_for_backward(x, sums)
        return upsampled.forward(x, sums)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        x, sums = ctx.saved_tensors
        return upsampled.backward(x, sums, grads[0])


def weave(phases: Tensor) -> Tensor:
    """The map (N, O, 2H, 2W), channels-last, whose phases (N, 4 O, H + 1, W + 1) these are."""
    woven: Tensor = _Weave.apply(phases)
    return woven


class _Weave(torch.autograd.Function):
    """(N, 4 O, H + 1, W + 1) -> (N, O, 2H, 2W): phase (a, b) gives the positions of parity a, b."""

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
    """For each phase its place among the phases and in the woven map."""
    everything = slice(None)
    return [
        (
            (everything, slice(index * channels, (index + 1) * channels), slice(a, a + height), slice(b, b + width)),
            (everything, everything, slice(a, None, 2), slice(b, None, 2)),
        )
        for index, (a, b) in enumerate(((0, 0), (0, 1), (1, 0), (1, 1)))
    ]
