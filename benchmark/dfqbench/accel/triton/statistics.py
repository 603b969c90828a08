"""Triton form of `batch_norm_stats`: moments of a channels-last feature map over positions, and their gradient."""

# Triton reads these functions as its own language: no annotations but those of its constants.
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,misc"
# ruff: noqa: D103, PLR0917, N803

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dfqbench.accel.triton.device import channel, sample_of, slice_of
from dfqbench.accel.triton.launch import (
    EXACT,
    FEWEST_PROGRAMS,
    LARGE_TILE,
    cut,
    elements,
    is_feature_map,
    like,
    power,
    register,
    rows,
)
from dfqbench.synth.moments import batch_norm_stats


@triton.jit(do_not_specialize=["positions", "slices"])
def statistics(x, mean, var, positions, slices, channels, P: tl.constexpr, C: tl.constexpr):
    """Mean and biased variance of a slice of positions."""
    n, part, c = tl.program_id(0), tl.program_id(1), tl.program_id(2) * C + tl.arange(0, C)
    here = c < channels
    begin, end = slice_of(positions, slices)
    first = n * positions * channels
    total = tl.zeros([C], tl.float32)
    for start in range(begin, end, P):
        p = start + tl.arange(0, P)
        inside = (p < end)[:, None] & here[None, :]
        at = first + p[:, None] * channels + c[None, :]
        total += tl.sum(tl.load(x + at, mask=inside, other=0.0).to(tl.float32), 0)
    centre = total / (end - begin)
    second = tl.zeros([C], tl.float32)
    for start in range(begin, end, P):
        p = start + tl.arange(0, P)
        inside = (p < end)[:, None] & here[None, :]
        at = first + p[:, None] * channels + c[None, :]
        v = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        off = tl.where(inside, v - centre[None, :], 0.0)
        second += tl.sum(off * off, 0)
    to = (n * slices + part) * channels + c
    tl.store(mean + to, centre, mask=here)
    tl.store(var + to, second / (end - begin), mask=here)


@triton.jit(do_not_specialize=["positions", "slices"])
def pooled(means, variances, mean, var, positions, slices, channels, S: tl.constexpr, C: tl.constexpr):
    """Moments of all positions from those of the slices, by the law of total variance."""
    n, c = tl.program_id(0), tl.program_id(1) * C + tl.arange(0, C)
    s = tl.arange(0, S)
    inside = (s < slices)[:, None] & (c < channels)[None, :]
    at = (n * slices + s[:, None]) * channels + c[None, :]
    length = tl.cdiv(positions, slices)
    weight = tl.maximum(tl.minimum(positions - s * length, length), 0).to(tl.float32)[:, None] / positions
    m = tl.load(means + at, mask=inside, other=0.0)
    whole = tl.sum(m * weight, 0)
    off = tl.where(inside, m - whole[None, :], 0.0)
    v = tl.load(variances + at, mask=inside, other=0.0)
    tl.store(mean + n * channels + c, whole, mask=c < channels)
    tl.store(var + n * channels + c, tl.sum((v + off * off) * weight, 0), mask=c < channels)


@triton.jit(do_not_specialize=["positions"])
def statistics_backward(
    x, mean, to_mean, to_var, out, count, positions, sample, channels, POWER: tl.constexpr, WHOLE: tl.constexpr,
    B: tl.constexpr,
):  # fmt: skip
    """The gradient in x: to_mean / M + to_var 2 (x - mean) / M over M positions."""
    i = tl.program_id(0) * B + tl.arange(0, B)
    inside = i < count
    to = sample_of(i, sample, WHOLE, B) * channels + channel(i, channels, POWER)
    v = tl.load(x + i, mask=inside, other=0.0).to(tl.float32)
    slope = tl.load(to_var + to, mask=inside, other=0.0) * (2.0 / positions)
    offset = tl.load(to_mean + to, mask=inside, other=0.0) / positions
    offset -= slope * tl.load(mean + to, mask=inside, other=0.0)
    tl.store(out + i, offset + slope * v, mask=inside)


def moments_by_slices(launch: Any, mean: Tensor, var: Tensor, sizes: tuple[int, int, int], **sizing: int) -> None:
    """Fill `mean` and `var` (N, C) by a kernel that takes them slice by slice of the positions.

    Args:
        launch: of the kernel: given its programs, the slices' moments, the number of slices and the tile.
        mean: to fill.
        var: to fill.
        sizes: samples, positions and channels.
        sizing: as of `launch.cut`.
    """
    samples, positions, channels = sizes
    tile, slices, blocks = cut(samples, positions, channels, **sizing)
    whole = (mean, var)
    parts = whole if slices == 1 else tuple(one.new_empty(samples, slices, channels) for one in whole)
    launch((samples, slices, blocks), parts, slices, tile)
    if slices > 1:
        pooled[samples, -(-channels // 64)](*parts, *whole, positions, slices, channels, S=power(slices), C=64)


@register(batch_norm_stats, is_feature_map)
def batch_norm_stats_form(x: Tensor) -> tuple[Tensor, Tensor]:
    mean, var = _BatchNormStats.apply(x)
    return mean, var


class _BatchNormStats(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        samples, channels, height, width = x.shape
        mean, var = (x.new_empty(samples, channels, dtype=torch.float32) for _ in range(2))

        def launch(grid: Any, parts: Any, slices: int, tile: dict[str, int]) -> None:
            statistics[grid](x, *parts, height * width, slices, channels, **tile, **EXACT)

        sizes = samples, height * width, channels
        moments_by_slices(launch, mean, var, sizes, programs=FEWEST_PROGRAMS, size=LARGE_TILE)
        ctx.save_for_backward(x, mean)
        return mean, var

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        x, mean = ctx.saved_tensors
        _, channels, height, width = x.shape
        positions, count = height * width, x.numel()
        out = torch.empty_like(x)
        statistics_backward[rows(count)](
            x, mean, grads[0].contiguous(), grads[1].contiguous(), out, count, positions, positions * channels,
            channels, **elements(channels, positions), **EXACT,
        )  # fmt: skip
        return like(out, x)
