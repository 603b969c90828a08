"""Kernels over the phases of an upsampled convolution (see `synth.upsampling`)."""

# Triton reads these functions as its own language: no annotations but those of its constants.
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,misc"
# ruff: noqa: D103, PLR0917, N803

from __future__ import annotations

import triton
import triton.language as tl

from dfqbench.native.gpu.shared import slice_of


@triton.jit
def _place(position, width, channels):
    """Where a position of the woven map lies among the phases, in numbers from the sample's first."""
    y, x = position // (2 * width), position % (2 * width)
    a, b = y % 2, x % 2
    i, j = a + y // 2, b + x // 2
    return ((i * (width + 1) + j) * 4 + 2 * a + b) * channels


@triton.jit(do_not_specialize=["slices"])
def woven_statistics(
    phases, mean, var, height: tl.constexpr, width: tl.constexpr, slices, channels: tl.constexpr,
    P: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """Mean and biased variance of a slice of the woven map's positions."""
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
def woven_forward(
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
def woven_sums(
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
def woven_backward(
    phases, grad, scale, shift, incline, offset, out, count, height: tl.constexpr, width: tl.constexpr,
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
    woven = ((n * 2 * height + 2 * y + a) * 2 * width + 2 * x + b) * channels + c
    to = n * channels + c
    v = tl.load(phases + i, mask=seen, other=0.0).to(tl.float32)
    g = tl.load(grad + woven, mask=seen, other=0.0).to(tl.float32)
    s = tl.load(scale + to, mask=seen, other=0.0)
    g = tl.where(v * s + tl.load(shift + to, mask=seen, other=0.0) > 0.0, g, g * negative)
    of_moments = tl.load(offset + c, mask=seen, other=0.0) + tl.load(incline + c, mask=seen, other=0.0) * v
    tl.store(out + i, tl.where(seen, of_moments + g * s, 0.0), mask=inside)
