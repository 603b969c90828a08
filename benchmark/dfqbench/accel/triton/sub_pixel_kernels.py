"""Kernels of a generator's BatchNorm: over the sub-pixel phases of a convolution, and over tables of their sums."""

# Triton reads these functions as its own language: no annotations but those of its constants.
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,misc"
# ruff: noqa: D103, PLR0917, N803

from __future__ import annotations

import triton
import triton.language as tl

from dfqbench.accel.triton.device import slice_of


@triton.jit
def _place(position, width, channels):
    """Where a position of the merged map lies among the phases, in numbers from the sample's first."""
    y, x = position // (2 * width), position % (2 * width)
    a, b = y % 2, x % 2
    i, j = a + y // 2, b + x // 2
    return ((i * (width + 1) + j) * 4 + 2 * a + b) * channels


@triton.jit(do_not_specialize=["slices"])
def phase_statistics(
    phases, mean, var, height: tl.constexpr, width: tl.constexpr, slices, channels: tl.constexpr,
    P: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """Mean and biased variance of a slice of the merged map's positions."""
    n, part, c = tl.program_id(0), tl.program_id(1), tl.program_id(2) * C + tl.arange(0, C)
    here = c < channels
    positions = 4 * height * width
    begin, end = slice_of(positions, slices)
    first = n * (height + 1) * (width + 1) * 4 * channels
    total = tl.zeros([C], tl.float32)
    for start in range(begin, end, P):
        p = start + tl.arange(0, P)
        inside = (p < end)[:, None] & here[None, :]
        at = first + _place(p, width, channels)[:, None] + c[None, :]
        total += tl.sum(tl.load(phases + at, mask=inside, other=0.0).to(tl.float32), 0)
    centre = total / (end - begin)
    second = tl.zeros([C], tl.float32)
    for start in range(begin, end, P):
        p = start + tl.arange(0, P)
        inside = (p < end)[:, None] & here[None, :]
        at = first + _place(p, width, channels)[:, None] + c[None, :]
        v = tl.load(phases + at, mask=inside, other=0.0).to(tl.float32)
        off = tl.where(inside, v - centre[None, :], 0.0)
        second += tl.sum(off * off, 0)
    to = (n * slices + part) * channels + c
    tl.store(mean + to, centre, mask=here)
    tl.store(var + to, second / (end - begin), mask=here)


@triton.jit(do_not_specialize=["negative"])
def phase_forward(
    phases, scale, shift, out, count, height: tl.constexpr, width: tl.constexpr, channels: tl.constexpr,
    negative, B: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0) * B + tl.arange(0, B)
    inside = i < count
    c, row = i % channels, i // channels
    n, p = row // (4 * height * width), row % (4 * height * width)
    at = n * (height + 1) * (width + 1) * 4 * channels + _place(p, width, channels) + c
    to = n * channels + c
    a, b = tl.load(scale + to, mask=inside, other=0.0), tl.load(shift + to, mask=inside, other=0.0)
    y = tl.load(phases + at, mask=inside, other=0.0).to(tl.float32) * a + b
    tl.store(out + i, tl.where(y < 0.0, y * negative, y), mask=inside)


@triton.jit(do_not_specialize=["slices", "negative"])
def phase_sums(
    phases, grad, scale, shift, centre, to_scale, to_shift, height: tl.constexpr, width: tl.constexpr, slices,
    channels: tl.constexpr, negative, P: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    n, part, c = tl.program_id(0), tl.program_id(1), tl.program_id(2) * C + tl.arange(0, C)
    here = c < channels
    positions = 4 * height * width
    begin, end = slice_of(positions, slices)
    first = n * (height + 1) * (width + 1) * 4 * channels
    slope = tl.load(scale + n * channels + c, mask=here, other=0.0)[None, :]
    offset = tl.load(shift + n * channels + c, mask=here, other=0.0)[None, :]
    middle = tl.load(centre + c, mask=here, other=0.0)[None, :]
    by_x, total = tl.zeros([C], tl.float32), tl.zeros([C], tl.float32)
    for start in range(begin, end, P):
        p = start + tl.arange(0, P)
        inside = (p < end)[:, None] & here[None, :]
        at = first + _place(p, width, channels)[:, None] + c[None, :]
        v = tl.load(phases + at, mask=inside, other=0.0).to(tl.float32)
        g = tl.load(grad + (n * positions + p[:, None]) * channels + c[None, :], mask=inside, other=0.0).to(tl.float32)
        g = tl.where(v * slope + offset > 0.0, g, g * negative)
        total += tl.sum(g, 0)
        by_x += tl.sum(tl.where(inside, g * (v - middle), 0.0), 0)
    to = (part * tl.num_programs(0) + n) * channels + c
    tl.store(to_scale + to, by_x, mask=here)
    tl.store(to_shift + to, total, mask=here)


@triton.jit(do_not_specialize=["negative"])
def phase_backward(
    phases, grad, scale, shift, slope_of_moments, offset, out, count, height: tl.constexpr, width: tl.constexpr,
    channels: tl.constexpr, negative, B: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0) * B + tl.arange(0, B)
    inside = i < count
    c, row = i % channels, i // channels
    k, row = row % 4, row // 4
    a, b = k // 2, k % 2
    x, row = row % (width + 1) - b, row // (width + 1)
    y, n = row % (height + 1) - a, row // (height + 1)
    seen = inside & (y >= 0) & (y < height) & (x >= 0) & (x < width)
    merged = ((n * 2 * height + 2 * y + a) * 2 * width + 2 * x + b) * channels + c
    to = n * channels + c
    v = tl.load(phases + i, mask=seen, other=0.0).to(tl.float32)
    g = tl.load(grad + merged, mask=seen, other=0.0).to(tl.float32)
    s = tl.load(scale + to, mask=seen, other=0.0)
    g = tl.where(v * s + tl.load(shift + to, mask=seen, other=0.0) > 0.0, g, g * negative)
    of_moments = tl.load(offset + c, mask=seen, other=0.0) + tl.load(slope_of_moments + c, mask=seen, other=0.0) * v
    tl.store(out + i, tl.where(seen, of_moments + g * s, 0.0), mask=inside)


@triton.jit(do_not_specialize=["samples"])
def batch_moments(means, variances, mean, var, samples, channels, P: tl.constexpr, C: tl.constexpr):
    """Moments of all samples from those of each, by the law of total variance."""
    c = tl.program_id(0) * C + tl.arange(0, C)
    here = c < channels
    total = tl.zeros([C], tl.float32)
    for start in range(0, samples, P):
        n = start + tl.arange(0, P)
        at, inside = n[:, None] * channels + c[None, :], (n < samples)[:, None] & here[None, :]
        total += tl.sum(tl.load(means + at, mask=inside, other=0.0), 0)
    centre = total / samples
    second = tl.zeros([C], tl.float32)
    for start in range(0, samples, P):
        n = start + tl.arange(0, P)
        at, inside = n[:, None] * channels + c[None, :], (n < samples)[:, None] & here[None, :]
        off = tl.where(inside, tl.load(means + at, mask=inside, other=0.0) - centre[None, :], 0.0)
        second += tl.sum(tl.load(variances + at, mask=inside, other=0.0) + off * off, 0)
    tl.store(mean + c, centre, mask=here)
    tl.store(var + c, second / samples, mask=here)


@triton.jit(do_not_specialize=["samples", "eps"])
def batch_affine(
    scale, shift, mean, var, inverse, whole, moved, samples, channels, eps, ROWS: tl.constexpr, B: tl.constexpr
):  # fmt: skip
    """Scale and shift of x for each sample: they normalise it by a batch's moments and apply `scale` and `shift`."""
    i = tl.program_id(0) * B + tl.arange(0, B)
    inside = i < samples * channels
    c = i % channels
    of_layer = i if ROWS else c
    one_over = tl.div_rn(1.0, tl.sqrt_rn(tl.load(var + c, mask=inside, other=1.0) + eps))
    slope = tl.load(scale + of_layer, mask=inside, other=0.0) * one_over
    tl.store(inverse + c, one_over, mask=inside & (i < channels))
    tl.store(whole + i, slope, mask=inside)
    offset = tl.load(shift + of_layer, mask=inside, other=0.0) - tl.load(mean + c, mask=inside, other=0.0) * slope
    tl.store(moved + i, offset, mask=inside)


@triton.jit(do_not_specialize=["samples", "count"])
def batch_affine_backward(
    by_x, to_shift, scale, mean, inverse, to_scales, to_shifts, slope_of_moments, offset, samples, channels, count,
    ROWS: tl.constexpr, P: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """Gradients of a BatchNorm over a batch: in scale and shift, of each sample (ROWS) or of all; that of the moments.

    by_x and to_shift are sums for each sample; scale is (samples, channels) with ROWS, (channels) without.
    """
    c = tl.program_id(0) * C + tl.arange(0, C)
    here = c < channels
    one_over = tl.load(inverse + c, mask=here, other=0.0)
    of_g, of_gz = tl.zeros([C], tl.float32), tl.zeros([C], tl.float32)
    for start in range(0, samples, P):
        n = start + tl.arange(0, P)
        at, inside = n[:, None] * channels + c[None, :], (n < samples)[:, None] & here[None, :]
        g = tl.load(to_shift + at, mask=inside, other=0.0)
        gz = tl.load(by_x + at, mask=inside, other=0.0) * one_over[None, :]
        if ROWS:
            tl.store(to_scales + at, gz, mask=inside)
            s = tl.load(scale + at, mask=inside, other=0.0)
            g, gz = g * s, gz * s
        of_g += tl.sum(g, 0)
        of_gz += tl.sum(gz, 0)
    if not ROWS:
        tl.store(to_scales + c, of_gz, mask=here)
        tl.store(to_shifts + c, of_g, mask=here)
        s = tl.load(scale + c, mask=here, other=0.0)
        of_g, of_gz = of_g * s, of_gz * s
    slope = -(of_gz / count) * one_over * one_over
    tl.store(slope_of_moments + c, slope, mask=here)
    tl.store(offset + c, -(of_g / count) * one_over - slope * tl.load(mean + c, mask=here, other=0.0), mask=here)
