"""Kernels that round to grids, and those of the factors between grids and numbers."""

# Triton reads these functions as its own language: no annotations but those of its constants.
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,misc"
# ruff: noqa: D103, PLR0917, N803

from __future__ import annotations

import triton
import triton.language as tl

from dfqbench.native.gpu.shared import channel, code, nearest, summed


@triton.jit
def units(x_scale, w_scale, unit, inner, ratio, channels, C: tl.constexpr):
    """The factors between a convolution's integers and its numbers, and those of its gradients."""
    c = tl.program_id(0) * C + tl.arange(0, C)
    here = c < channels
    of_x, of_w = tl.load(x_scale), tl.load(w_scale + c, mask=here, other=1.0)
    one = tl.div_rn(1.0, of_x * of_w)
    tl.store(unit + c, one, mask=here)
    tl.store(inner + c, one * of_x, mask=here)
    tl.store(ratio + c, tl.div_rn(of_w, of_x), mask=here)


@triton.jit
def scaled(x, factor, out, count, channels, POWER: tl.constexpr, B: tl.constexpr):
    i = tl.program_id(0) * B + tl.arange(0, B)
    inside = i < count
    v = tl.load(x + i, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + i, v * tl.load(factor + channel(i, channels, POWER), mask=inside, other=0.0), mask=inside)


@triton.jit(do_not_specialize=["low", "high"])
def round_to_grid(x, out, codes, scale, shift, count, low, high, CODES: tl.constexpr, B: tl.constexpr):
    i = tl.program_id(0) * B + tl.arange(0, B)
    inside = i < count
    unit = tl.load(scale)
    n = code(tl.load(x + i, mask=inside, other=0.0), unit, tl.load(shift), low, high)
    tl.store(out + i, tl.div_rn(n, unit), mask=inside)
    if CODES:
        tl.store(codes + i, n, mask=inside)


@triton.jit(do_not_specialize=["low", "high"])
def rounded_block(
    x, scale, shift, residual, out, codes, grid_scale, grid_shift, count, channels, low, high,
    ADD: tl.constexpr, CODES: tl.constexpr, POWER: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0) * B + tl.arange(0, B)
    inside = i < count
    c = channel(i, channels, POWER)
    r = tl.load(residual + i, mask=inside, other=0.0) if ADD else 0.0
    a, b = tl.load(scale + c, mask=inside, other=0.0), tl.load(shift + c, mask=inside, other=0.0)
    unit = tl.load(grid_scale)
    y = summed(tl.load(x + i, mask=inside, other=0.0), a, b, r, ADD)
    n = code(y, unit, tl.load(grid_shift), low, high)
    tl.store(out + i, tl.div_rn(n, unit), mask=inside)
    if CODES:
        tl.store(codes + i, n, mask=inside)


@triton.jit(do_not_specialize=["low", "high", "half", "smallest"])
def rounded_weight(
    x, out, codes, scale, count, low, high, half, smallest, B: tl.constexpr
):  # fmt: skip
    """A program for each output channel, whose numbers lie in a row: rounds them to the grid of their range."""
    row = tl.program_id(0)
    least = tl.full([B], float("inf"), tl.float32)
    most = tl.full([B], float("-inf"), tl.float32)
    for start in range(0, count, B):
        i = start + tl.arange(0, B)
        inside = i < count
        v = tl.load(x + row * count + i, mask=inside, other=0.0)
        least = tl.where(inside & (v < least), v, least)
        most = tl.where(inside & (v > most), v, most)
    bottom, top = tl.min(least, 0), tl.max(most, 0)
    span = top - bottom
    span = tl.where(span < smallest, smallest, span)
    unit = tl.div_rn(1.0, span) * (high - low)
    shift = nearest(unit * bottom) + half
    tl.store(scale + row, unit)
    for start in range(0, count, B):
        i = start + tl.arange(0, B)
        inside = i < count
        n = code(tl.load(x + row * count + i, mask=inside, other=0.0), unit, shift, low, high)
        tl.store(out + row * count + i, tl.div_rn(n, unit), mask=inside)
        tl.store(codes + row * count + i, n, mask=inside)
