"""Triton form of `batch_norm_stats`: moments of a channels-last feature map over positions, and their gradient."""

# Triton functions have no annotations but those of their constants.
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,misc"
# ruff: noqa: PLR0917, N803

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dfqbench.accel.triton.device import channel, phase_offset, slice_of
from dfqbench.accel.triton.launch import (
    EXACT,
    FEWEST_PROGRAMS,
    LARGE_TILE,
    ROW,
    cut,
    elements,
    is_feature_map,
    register,
    rows,
)
from dfqbench.synth.moments import batch_norm_stats


@triton.jit(do_not_specialize=["positions", "slices"])
def statistics(
    x, mean, var, positions, slices, sample, channels, WIDTH: tl.constexpr, P: tl.constexpr, C: tl.constexpr
):  # fmt: skip
    """Mean and biased variance of a slice of positions; WIDTH > 0: x holds sub-pixel phases (see `phase_offset`)."""
    n, part, c = tl.program_id(0), tl.program_id(1), tl.program_id(2) * C + tl.arange(0, C)
    begin, end = slice_of(positions, slices)
    first = n * sample
    total = tl.zeros([C], tl.float32)
    for start in range(begin, end, P):
        p = start + tl.arange(0, P)
        mask = (p < end)[:, None] & (c < channels)[None, :]
        offset = phase_offset(p, channels, WIDTH) if WIDTH > 0 else p * channels
        v = tl.load(x + first + offset[:, None] + c[None, :], mask=mask, other=0.0).to(tl.float32)
        total += tl.sum(v, 0)
    centre = total / (end - begin)
    second = tl.zeros([C], tl.float32)
    for start in range(begin, end, P):
        p = start + tl.arange(0, P)
        mask = (p < end)[:, None] & (c < channels)[None, :]
        offset = phase_offset(p, channels, WIDTH) if WIDTH > 0 else p * channels
        v = tl.load(x + first + offset[:, None] + c[None, :], mask=mask, other=0.0).to(tl.float32)
        centred = tl.where(mask, v - centre[None, :], 0.0)
        second += tl.sum(centred * centred, 0)
    to = (n * slices + part) * channels + c
    tl.store(mean + to, centre, mask=c < channels)
    tl.store(var + to, second / (end - begin), mask=c < channels)


@triton.jit(do_not_specialize=["positions", "slices"])
def pooled(means, variances, mean, var, positions, slices, channels, S: tl.constexpr, C: tl.constexpr):
    """Moments of all positions from those of the slices, by the law of total variance."""
    n, c = tl.program_id(0), tl.program_id(1) * C + tl.arange(0, C)
    s = tl.arange(0, S)
    mask = (s < slices)[:, None] & (c < channels)[None, :]
    at = (n * slices + s[:, None]) * channels + c[None, :]
    length = tl.cdiv(positions, slices)
    weight = tl.maximum(tl.minimum(positions - s * length, length), 0).to(tl.float32)[:, None] / positions
    m = tl.load(means + at, mask=mask, other=0.0)
    centre = tl.sum(m * weight, 0)
    centred = tl.where(mask, m - centre[None, :], 0.0)
    v = tl.load(variances + at, mask=mask, other=0.0)
    tl.store(mean + n * channels + c, centre, mask=c < channels)
    tl.store(var + n * channels + c, tl.sum((v + centred * centred) * weight, 0), mask=c < channels)


@triton.jit(do_not_specialize=["positions"])
def statistics_backward(
    x, mean, to_mean, to_var, out, count, positions, sample, channels, ONE_SAMPLE: tl.constexpr, POWER: tl.constexpr,
    B: tl.constexpr,
):  # fmt: skip
    """The gradient in x: to_mean / M + to_var 2 (x - mean) / M over M positions.

    ONE_SAMPLE: the elements of a program are all of one sample.
    """
    i = tl.program_id(0) * B + tl.arange(0, B)
    mask = i < count
    n = (tl.program_id(0) * B) // sample if ONE_SAMPLE else i // sample
    at = n * channels + channel(i, channels, POWER)
    v = tl.load(x + i, mask=mask, other=0.0).to(tl.float32)
    slope = tl.load(to_var + at, mask=mask, other=0.0) * (2.0 / positions)
    offset = tl.load(to_mean + at, mask=mask, other=0.0) / positions
    offset -= slope * tl.load(mean + at, mask=mask, other=0.0)
    tl.store(out + i, offset + slope * v, mask=mask)


def moments(x: Tensor, sizes: tuple[int, int, int], *, phase_width: int = 0, **sizing: int) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance (N, C) over positions, float32.

    Args:
        x: channels-last map, or sub-pixel phases of one.
        sizes: samples, positions and channels of the map.
        phase_width: half the width of the map whose phases `x` holds, or 0 where `x` is the map.
        sizing: as of `launch.cut`.
    """
    samples, positions, channels = sizes
    tile, slices, blocks = cut(samples, positions, channels, **sizing)
    mean, var = (x.new_empty(samples, channels, dtype=torch.float32) for _ in range(2))
    parts = (mean, var) if slices == 1 else tuple(mean.new_empty(samples, slices, channels) for _ in range(2))
    statistics[samples, slices, blocks](
        x, *parts, positions, slices, x[0].numel(), channels, WIDTH=phase_width, **tile, **EXACT
    )
    if slices > 1:
        size = triton.next_power_of_2(slices)
        pooled[samples, triton.cdiv(channels, 64)](*parts, mean, var, positions, slices, channels, S=size, C=64)
    return mean, var


class _BatchNormStats(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        samples, channels, height, width = x.shape
        mean, var = moments(x, (samples, height * width, channels), programs=FEWEST_PROGRAMS, size=LARGE_TILE)
        ctx.save_for_backward(x, mean)
        return mean, var

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        x, mean = ctx.saved_tensors
        _, channels, height, width = x.shape
        sample = channels * height * width
        out = torch.empty_like(x)
        statistics_backward[rows(x.numel())](
            x, mean, grads[0].contiguous(), grads[1].contiguous(), out, x.numel(), height * width, sample, channels,
            ONE_SAMPLE=sample % ROW == 0, **elements(channels), **EXACT,
        )  # fmt: skip
        return out


batch_norm_stats_form = register(batch_norm_stats, is_feature_map, _BatchNormStats.apply)
