"""Kernels over feature maps: moments, BatchNorm with what follows it, and their gradients."""

# Triton reads these functions as its own language: no annotations but those of its constants.
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,misc"
# ruff: noqa: D103, PLR0917, N803

from __future__ import annotations

import triton
import triton.language as tl

from dfqbench.native.gpu.shared import channel, clipped, passed, sample_of, slice_of, summed


@triton.jit(do_not_specialize=["positions", "slices", "ceiling"])
def statistics(
    x, scale, shift, residual, out, mean, var, positions, slices, channels, ceiling,
    APPLY: tl.constexpr, ADD: tl.constexpr, CLIP: tl.constexpr, P: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """Mean and biased variance of a slice of positions; with APPLY the block's output, too."""
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
    if APPLY:
        slope = tl.load(scale + c, mask=here, other=0.0)[None, :]
        offset = tl.load(shift + c, mask=here, other=0.0)[None, :]
    for start in range(begin, end, P):
        p = start + tl.arange(0, P)
        inside = (p < end)[:, None] & here[None, :]
        at = first + p[:, None] * channels + c[None, :]
        v = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        off = tl.where(inside, v - centre[None, :], 0.0)
        second += tl.sum(off * off, 0)
        if APPLY:
            r = tl.load(residual + at, mask=inside, other=0.0).to(tl.float32) if ADD else 0.0
            tl.store(out + at, clipped(summed(v, slope, offset, r, ADD), ceiling, CLIP), mask=inside)
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


@triton.jit
def moments_backward(
    x, slope, offset, out, count, sample, channels, POWER: tl.constexpr, WHOLE: tl.constexpr, B: tl.constexpr
):  # fmt: skip
    i = tl.program_id(0) * B + tl.arange(0, B)
    inside = i < count
    to = sample_of(i, sample, WHOLE, B) * channels + channel(i, channels, POWER)
    v = tl.load(x + i, mask=inside, other=0.0).to(tl.float32)
    a, b = tl.load(slope + to, mask=inside, other=0.0), tl.load(offset + to, mask=inside, other=0.0)
    tl.store(out + i, b + a * v, mask=inside)


@triton.jit(do_not_specialize=["ceiling"])
def block_backward(
    x, residual, grad, scale, shift, slope, offset, to_x, to_residual, count, sample, channels, ceiling,
    ADD: tl.constexpr, CLIP: tl.constexpr, CAPPED: tl.constexpr, POWER: tl.constexpr, WHOLE: tl.constexpr,
    B: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0) * B + tl.arange(0, B)
    inside = i < count
    c = channel(i, channels, POWER)
    to = sample_of(i, sample, WHOLE, B) * channels + c
    v = tl.load(x + i, mask=inside, other=0.0).to(tl.float32)
    g = tl.load(grad + i, mask=inside, other=0.0).to(tl.float32)
    s = tl.load(scale + c, mask=inside, other=0.0)
    if CLIP:
        r = tl.load(residual + i, mask=inside, other=0.0).to(tl.float32) if ADD else 0.0
        y = summed(v, s, tl.load(shift + c, mask=inside, other=0.0), r, ADD)
        g = passed(g, y, ceiling, CLIP, CAPPED)
    a, b = tl.load(slope + to, mask=inside, other=0.0), tl.load(offset + to, mask=inside, other=0.0)
    tl.store(to_x + i, (b + a * v) + g * s, mask=inside)
    if ADD:
        tl.store(to_residual + i, g, mask=inside)


@triton.jit(do_not_specialize=["positions", "slices", "ceiling"])
def affine_backward(
    x, residual, grad, scale, shift, centre, to_x, to_residual, to_scale, to_shift, positions, slices, channels,
    ceiling, ADD: tl.constexpr, CLIP: tl.constexpr, CAPPED: tl.constexpr, P: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    n, part, c = tl.program_id(0), tl.program_id(1), tl.program_id(2) * C + tl.arange(0, C)
    here = c < channels
    begin, end = slice_of(positions, slices)
    first = n * positions * channels
    slope = tl.load(scale + c, mask=here, other=0.0)[None, :]
    offset = tl.load(shift + c, mask=here, other=0.0)[None, :]
    middle = tl.load(centre + c, mask=here, other=0.0)[None, :]
    by_x, total = tl.zeros([C], tl.float32), tl.zeros([C], tl.float32)
    for start in range(begin, end, P):
        p = start + tl.arange(0, P)
        inside = (p < end)[:, None] & here[None, :]
        at = first + p[:, None] * channels + c[None, :]
        v = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        g = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
        if CLIP:
            r = tl.load(residual + at, mask=inside, other=0.0).to(tl.float32) if ADD else 0.0
            g = passed(g, summed(v, slope, offset, r, ADD), ceiling, CLIP, CAPPED)
        total += tl.sum(g, 0)
        by_x += tl.sum(g * (v - middle), 0)
        tl.store(to_x + at, g * slope, mask=inside)
        if ADD:
            tl.store(to_residual + at, g, mask=inside)
    to = (part * tl.num_programs(0) + n) * channels + c
    tl.store(to_scale + to, by_x, mask=here)
    tl.store(to_shift + to, total, mask=here)


@triton.jit
def totals(
    first, second, factor, to_first, to_second, rows, channels, SCALED: tl.constexpr, P: tl.constexpr, C: tl.constexpr
):  # fmt: skip
    """Sums of two tables over their rows; SCALED: the first ones times a factor for each channel."""
    c = tl.program_id(0) * C + tl.arange(0, C)
    one, two = tl.zeros([C], tl.float32), tl.zeros([C], tl.float32)
    for start in range(0, rows, P):
        p = start + tl.arange(0, P)
        inside = (p < rows)[:, None] & (c < channels)[None, :]
        at = p[:, None] * channels + c[None, :]
        one += tl.sum(tl.load(first + at, mask=inside, other=0.0), 0)
        two += tl.sum(tl.load(second + at, mask=inside, other=0.0), 0)
    if SCALED:
        one *= tl.load(factor + c, mask=c < channels, other=0.0)
    tl.store(to_first + c, one, mask=c < channels)
    tl.store(to_second + c, two, mask=c < channels)


@triton.jit(do_not_specialize=["positions", "by_mean", "by_var"])
def moments_gradient(mean, to_mean, to_var, slope, offset, positions, by_mean, by_var, channels, C: tl.constexpr):
    """A program for each sample: slope and offset of the moments' gradient; rows of gradients lie apart."""
    n, c = tl.program_id(0), tl.program_id(1) * C + tl.arange(0, C)
    here = c < channels
    a = tl.load(to_var + n * by_var + c, mask=here, other=0.0) * (2.0 / positions)
    of_mean = tl.load(to_mean + n * by_mean + c, mask=here, other=0.0) / positions
    tl.store(slope + n * channels + c, a, mask=here)
    tl.store(offset + n * channels + c, of_mean - a * tl.load(mean + n * channels + c, mask=here, other=0.0), mask=here)


@triton.jit(do_not_specialize=["eps"])
def affine(weight, bias, mean, var, scale, shift, inverse, channels, eps, C: tl.constexpr):
    """What a BatchNorm layer in eval mode amounts to."""
    c = tl.program_id(0) * C + tl.arange(0, C)
    here = c < channels
    one_over = tl.div_rn(1.0, tl.sqrt_rn(tl.load(var + c, mask=here, other=1.0) + eps))
    slope = tl.load(weight + c, mask=here, other=0.0) * one_over
    tl.store(inverse + c, one_over, mask=here)
    tl.store(scale + c, slope, mask=here)
    moved = tl.load(bias + c, mask=here, other=0.0) - tl.load(mean + c, mask=here, other=0.0) * slope
    tl.store(shift + c, moved, mask=here)
