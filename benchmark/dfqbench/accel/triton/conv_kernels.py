"""Kernels of 3x3 convolutions between few channels, for which libraries' kernels have too large tiles.

Operands are multiplied in their own type, bfloat16 or float32, and summed in float32.
"""

# Triton functions have no annotations but those of their constants.
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,misc"
# ruff: noqa: PLR0917, N803

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _load_tap(x, p, mask, row, column, height, width, channels, tap, C: tl.constexpr):
    """(P, C): the values under a tap of the window, for P positions."""
    c = tl.arange(0, C)
    down, right = tap // 3 - 1, tap % 3 - 1
    in_map = mask & (row + down >= 0) & (row + down < height) & (column + right >= 0) & (column + right < width)
    at = (p + down * width + right)[:, None] * channels + c[None, :]
    return tl.load(x + at, mask=in_map[:, None] & (c < channels)[None, :], other=0.0)


@triton.jit
def _load_row(x, p, mask, row, column, height, width, channels, down, J: tl.constexpr):
    """(P, J): the values under the three taps of a row of the window, contiguous in memory."""
    j = tl.arange(0, J)
    beside = column[:, None] + (j // channels)[None, :] - 1
    in_map = (mask & (row + down >= 0) & (row + down < height))[:, None] & (j < 3 * channels)[None, :]
    at = (p + down * width - 1)[:, None] * channels + j[None, :]
    return tl.load(x + at, mask=in_map & (beside >= 0) & (beside < width), other=0.0)


@triton.jit
def _weights(weight, taps, i, o, channels, outer, of_outer, of_inner, of_tap, BACK: tl.constexpr):
    """(len(i), OUT): weights between channels under taps, (len(i),) or one; rotated by 180 degrees with BACK."""
    at = (8 - taps if BACK else taps) * of_tap + i * of_inner
    mask = (i < channels)[:, None] & (o < outer)[None, :]
    return tl.load(weight + at[:, None] + o[None, :] * of_outer, mask=mask, other=0.0)


@triton.jit(do_not_specialize=["height", "width"])
def convolved(
    x, weight, factor, out, positions, height, width, channels, outer, of_outer, of_inner, of_tap,
    BACK: tl.constexpr, SCALED: tl.constexpr, ROWS: tl.constexpr, P: tl.constexpr, C: tl.constexpr, OUT: tl.constexpr,
):  # fmt: skip
    """A convolution, or its gradient in the input; SCALED: times a factor for each channel of the output.

    ROWS: a row of the window at a time, for fewer channels than a product needs; C is then that of three taps.
    """
    p = tl.program_id(0) * P + tl.arange(0, P)
    mask = p < positions
    column, row = p % width, (p // width) % height
    j, o = tl.arange(0, C), tl.arange(0, OUT)
    total = tl.zeros([P, OUT], tl.float32)
    for k in range(3 if ROWS else 9):
        if ROWS:
            v = _load_row(x, p, mask, row, column, height, width, channels, k - 1, C)
            taps, i = 3 * k + j // channels, tl.where(j < 3 * channels, j % channels, channels)
        else:
            v = _load_tap(x, p, mask, row, column, height, width, channels, k, C)
            taps, i = k, j
        w = _weights(weight, taps, i, o, channels, outer, of_outer, of_inner, of_tap, BACK)
        total = tl.dot(v, w.to(v.dtype), total, input_precision="ieee")
    if SCALED:
        total *= tl.load(factor + o, mask=o < outer, other=0.0)[None, :]
    tl.store(out + p[:, None] * outer + o[None, :], total, mask=mask[:, None] & (o < outer)[None, :])


@triton.jit(do_not_specialize=["height", "width", "length"])
def weight_sums(
    x, grad, partial, positions, height, width, length, channels, outer,
    P: tl.constexpr, J: tl.constexpr, OUT: tl.constexpr,
):  # fmt: skip
    """The gradient in the weight from a slice of positions, one row of the window: (slices, 3, 3 channels, outer)."""
    part, k = tl.program_id(0), tl.program_id(1)
    j, o = tl.arange(0, J), tl.arange(0, OUT)
    begin = part * length
    end = tl.minimum(begin + length, positions)
    total = tl.zeros([J, OUT], tl.float32)
    for start in range(begin, end, P):
        p = start + tl.arange(0, P)
        mask = p < end
        v = _load_row(x, p, mask, (p // width) % height, p % width, height, width, channels, k - 1, J)
        to = p[:, None] * outer + o[None, :]
        g = tl.load(grad + to, mask=mask[:, None] & (o < outer)[None, :], other=0.0)
        total = tl.dot(tl.trans(v), g, total, input_precision="ieee")
    to = ((part * 3 + k) * 3 * channels + j[:, None]) * outer + o[None, :]
    tl.store(partial + to, total, mask=(j < 3 * channels)[:, None] & (o < outer)[None, :])


@triton.jit(do_not_specialize=["slices"])
def weight_total(
    partial, out, slices, channels, outer, of_outer, of_inner, of_tap, S: tl.constexpr, B: tl.constexpr
):  # fmt: skip
    """The sum over slices, in the weight's memory order."""
    e, s = tl.program_id(0) * B + tl.arange(0, B), tl.arange(0, S)
    count = 9 * channels * outer
    total = tl.zeros([B], tl.float32)
    for first in range(0, slices, S):
        at = (first + s)[:, None] * count + e[None, :]
        mask = ((first + s) < slices)[:, None] & (e < count)[None, :]
        total += tl.sum(tl.load(partial + at, mask=mask, other=0.0), 0)
    o, i, tap = e % outer, (e // outer) % channels, e // (outer * channels)
    tl.store(out + o * of_outer + i * of_inner + tap * of_tap, total, mask=e < count)
