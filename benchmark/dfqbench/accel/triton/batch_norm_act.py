"""Triton form of `batch_norm_act`: one kernel forward, two backward."""

# Triton reads these functions as its own language: no annotations but those of its constants.
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,misc"
# ruff: noqa: D103, PLR0917, N803

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dfqbench.accel.triton.device import channel, slice_of
from dfqbench.accel.triton.launch import (
    EXACT,
    MANY_PROGRAMS,
    MOST_SLICES,
    cut,
    elements,
    is_feature_map,
    like,
    power,
    register,
    rows,
    vector,
)
from dfqbench.quant.batch_norm_act import batch_norm_act


@triton.jit(do_not_specialize=["eps"])
def affine_of(weight, bias, mean, var, scale, shift, inverse, channels, eps, C: tl.constexpr):
    """Scale and shift that a BatchNorm layer in eval mode amounts to, and one over its running deviation."""
    c = tl.program_id(0) * C + tl.arange(0, C)
    here = c < channels
    one_over = tl.div_rn(1.0, tl.sqrt_rn(tl.load(var + c, mask=here, other=1.0) + eps))
    slope = tl.load(weight + c, mask=here, other=0.0) * one_over
    tl.store(inverse + c, one_over, mask=here)
    tl.store(scale + c, slope, mask=here)
    moved = tl.load(bias + c, mask=here, other=0.0) - tl.load(mean + c, mask=here, other=0.0) * slope
    tl.store(shift + c, moved, mask=here)


@triton.jit
def summed(x, scale, shift, residual, ADD: tl.constexpr):
    y = x * scale + shift
    return y + residual if ADD else y


@triton.jit(do_not_specialize=["upper"])
def forward_kernel(
    x, scale, shift, residual, out, count, channels, upper, ADD: tl.constexpr, POWER: tl.constexpr, B: tl.constexpr
):  # fmt: skip
    i = tl.program_id(0) * B + tl.arange(0, B)
    inside = i < count
    c = channel(i, channels, POWER)
    r = tl.load(residual + i, mask=inside, other=0.0).to(tl.float32) if ADD else 0.0
    a, b = tl.load(scale + c, mask=inside, other=0.0), tl.load(shift + c, mask=inside, other=0.0)
    y = summed(tl.load(x + i, mask=inside, other=0.0).to(tl.float32), a, b, r, ADD)
    # In this order NaN stays NaN.
    y = tl.where(y < 0.0, 0.0, y)
    y = tl.where(y > upper, upper, y)
    tl.store(out + i, y, mask=inside)


@triton.jit(do_not_specialize=["positions", "slices", "upper"])
def backward_kernel(
    x, residual, grad, scale, shift, centre, to_x, to_residual, to_scale, to_shift, positions, slices, channels,
    upper, ADD: tl.constexpr, CAPPED: tl.constexpr, P: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """Gradients in x and residual; for each slice the sums behind those in weight and bias."""
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
        r = tl.load(residual + at, mask=inside, other=0.0).to(tl.float32) if ADD else 0.0
        y = summed(v, slope, offset, r, ADD)
        g = tl.where(y <= 0.0, 0.0, g)
        if CAPPED:
            g = tl.where(y < upper, g, 0.0)
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
    first, second, factor, to_first, to_second, length, channels, SCALED: tl.constexpr, P: tl.constexpr,
    C: tl.constexpr,
):  # fmt: skip
    """Sums of two tables over their rows; SCALED: the first ones times a factor for each channel."""
    c = tl.program_id(0) * C + tl.arange(0, C)
    one, two = tl.zeros([C], tl.float32), tl.zeros([C], tl.float32)
    for start in range(0, length, P):
        p = start + tl.arange(0, P)
        inside = (p < length)[:, None] & (c < channels)[None, :]
        at = p[:, None] * channels + c[None, :]
        one += tl.sum(tl.load(first + at, mask=inside, other=0.0), 0)
        two += tl.sum(tl.load(second + at, mask=inside, other=0.0), 0)
    if SCALED:
        one *= tl.load(factor + c, mask=c < channels, other=0.0)
    tl.store(to_first + c, one, mask=c < channels)
    tl.store(to_second + c, two, mask=c < channels)


def add_up(partial: Any, factor: Tensor | None, sums: Any, length: int, columns: int) -> None:
    """Add up the rows of two tables into `sums`; the first sums times a factor."""
    many = length > MOST_SLICES
    totals[(-(-columns // (16 if many else 64)),)](
        *partial, sums[0] if factor is None else factor, *sums, length, columns, SCALED=factor is not None,
        P=min(1024, power(length)), C=16 if many else 64, num_warps=16 if many else 4,
    )  # fmt: skip


def _supports(x: Tensor, residual: Tensor | None, weight: Tensor | None, bias: Tensor | None, *rest: Any) -> bool:  # noqa: ARG001
    alike = residual is None or (residual.shape == x.shape and residual.dtype == x.dtype)
    return alike and is_feature_map(x) and weight is not None and bias is not None


@register(batch_norm_act, _supports)
def batch_norm_act_form(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    var: Tensor,
    eps: float,
    upper: float,
) -> Tensor:
    out: Tensor = _BatchNormAct.apply(x, residual, weight, bias, mean, var, eps, upper)
    return out


class _BatchNormAct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor,
        eps: float, upper: float,
    ) -> Tensor:  # fmt: skip
        residual = None if residual is None else like(residual, x)
        channels = x.shape[1]
        scale, shift, inverse = (x.new_empty(channels, dtype=torch.float32) for _ in range(3))
        mean = vector(mean)
        affine_of[(-(-channels // 256),)](
            *map(vector, (weight, bias)), mean, vector(var), scale, shift, inverse, channels, eps, C=256, **EXACT
        )
        out = torch.empty_like(x)
        forward_kernel[rows(x.numel())](
            x, scale, shift, x if residual is None else residual, out, x.numel(), channels, upper,
            ADD=residual is not None, **elements(channels), **EXACT,
        )  # fmt: skip
        ctx.save_for_backward(x, residual, scale, shift, mean, inverse)
        ctx.upper = upper
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, residual, scale, shift, mean, inverse = ctx.saved_tensors
        samples, channels, height, width = x.shape
        positions = height * width
        to_x, to_residual = torch.empty_like(x), None if residual is None else torch.empty_like(x)
        tile, slices, blocks = cut(samples, positions, channels, MANY_PROGRAMS)
        # A row for each sample and slice, added up to one.
        partial = [scale.new_empty(samples * slices, channels) for _ in range(2)]
        backward_kernel[samples, slices, blocks](
            x, x if residual is None else residual, like(grads[0], x), scale, shift, mean, to_x,
            to_x if to_residual is None else to_residual, *partial, positions, slices, channels, ctx.upper,
            ADD=residual is not None, CAPPED=math.isfinite(ctx.upper), **tile, **EXACT,
        )  # fmt: skip
        to_weight, to_bias = torch.empty_like(scale), torch.empty_like(scale)
        add_up(partial, inverse, (to_weight, to_bias), samples * slices, channels)
        return to_x, to_residual, to_weight, to_bias, None, None, None, None
