"""Triton forms of `fake_quantize` and `fake_quantize_channels`."""

# Triton functions have no annotations but those of their constants.
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,misc"
# ruff: noqa: D103, PLR0917, N803

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dfqbench.accel.triton.launch import EXACT, ROW, TILE, is_dense, register, rows
from dfqbench.quant.fake_quantize import SMALLEST_SPAN, fake_quantize, fake_quantize_channels

ROUND = tl.constexpr(12582912.0)
"""1.5 * 2^23: adding and subtracting it rounds a smaller float32 half to even."""


@triton.jit
def int_repr(x, scale, zero_point, low, high):
    """S times the level nearest to x, an integer (`quant.fake_quantize`)."""
    n = x * scale - zero_point
    # In this order NaN stays NaN.
    n = tl.where(n < low, low, n)
    n = tl.where(n > high, high, n)
    return ((n + ROUND) - ROUND) + zero_point


@triton.jit
def nearest(x):
    """The nearest integer, half to even, for any x."""
    down = tl.floor(x)
    above = x - down
    odd = down - 2.0 * tl.floor(down * 0.5)
    return down + tl.where(above == 0.5, odd, tl.where(above > 0.5, 1.0, 0.0))


@triton.jit(do_not_specialize=["low", "high"])
def round_to_levels(x, out, scale, zero_point, count, low, high, B: tl.constexpr):
    i = tl.program_id(0) * B + tl.arange(0, B)
    mask = i < count
    s = tl.load(scale)
    n = int_repr(tl.load(x + i, mask=mask, other=0.0), s, tl.load(zero_point), low, high)
    tl.store(out + i, tl.div_rn(n, s), mask=mask)


@triton.jit(do_not_specialize=["low", "high", "half", "smallest"])
def round_channels(x, out, scale, count, low, high, half, smallest, B: tl.constexpr):
    """Round each output channel, contiguous in memory, to the levels of its range; one program a channel."""
    row = tl.program_id(0)
    least = tl.full([B], float("inf"), tl.float32)
    most = tl.full([B], float("-inf"), tl.float32)
    for start in range(0, count, B):
        i = start + tl.arange(0, B)
        mask = i < count
        v = tl.load(x + row * count + i, mask=mask, other=0.0)
        least = tl.where(mask & (v < least), v, least)
        most = tl.where(mask & (v > most), v, most)
    bottom, top = tl.min(least, 0), tl.max(most, 0)
    span = top - bottom
    span = tl.where(span < smallest, smallest, span)
    s = tl.div_rn(1.0, span) * (high - low)
    zero_point = nearest(s * bottom) + half
    tl.store(scale + row, s)
    for start in range(0, count, B):
        i = start + tl.arange(0, B)
        mask = i < count
        n = int_repr(tl.load(x + row * count + i, mask=mask, other=0.0), s, zero_point, low, high)
        tl.store(out + row * count + i, tl.div_rn(n, s), mask=mask)


def _ends(bits: int) -> tuple[float, float]:
    return -float(2 ** (bits - 1)), float(2 ** (bits - 1) - 1)


def _supports(x: Tensor, scale: Tensor, zero_point: Tensor, bits: int) -> bool:  # noqa: ARG001 - the operator's arguments
    return is_dense(x) and scale.ndim == zero_point.ndim == 0 and scale.dtype == zero_point.dtype == torch.float32


class _FakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, bits: int) -> Tensor:  # noqa: ARG004
        out = torch.empty_like(x)
        round_to_levels[rows(x.numel())](x, out, scale, zero_point, x.numel(), *_ends(bits), B=ROW, **EXACT)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:  # noqa: ARG004
        return grads[0], None, None, None


class _FakeQuantizeChannels(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
        channels, count = weight.shape[0], weight[0].numel()
        out = torch.empty_like(weight)
        scale = weight.new_empty(channels, *(1,) * (weight.ndim - 1))
        low, high = _ends(bits)
        tile = min(TILE, max(32, triton.next_power_of_2(count)))
        round_channels[(channels,)](weight, out, scale, count, low, high, -low, SMALLEST_SPAN, B=tile, **EXACT)
        ctx.mark_non_differentiable(scale)
        ctx.set_materialize_grads(False)
        return out, scale

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:  # noqa: ARG004 - torch's signature
        return grads[0], None


fake_quantize_form = register(fake_quantize, _supports, _FakeQuantize.apply)
fake_quantize_channels_form = register(
    fake_quantize_channels,
    lambda weight, bits: is_dense(weight),  # noqa: ARG005
    _FakeQuantizeChannels.apply,
)
