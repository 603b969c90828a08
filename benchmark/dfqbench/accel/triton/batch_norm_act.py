"""Triton form of `batch_norm_act`: two kernels forward, one backward."""

# Triton functions have no annotations but those of their constants.
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
    cut,
    elements,
    is_feature_map,
    like,
    register,
    rows,
    vector,
)
from dfqbench.quant.batch_norm import batch_norm_act


@triton.jit(do_not_specialize=["eps"])
def affine_kernel(weight, bias, mean, var, scale, shift, inverse, channels, eps, C: tl.constexpr):
    """Scale and shift equivalent to a BatchNorm layer in eval mode, and one over its running deviation."""
    c = tl.program_id(0) * C + tl.arange(0, C)
    mask = c < channels
    inverse_std = tl.div_rn(1.0, tl.sqrt_rn(tl.load(var + c, mask=mask, other=1.0) + eps))
    a = tl.load(weight + c, mask=mask, other=0.0) * inverse_std
    tl.store(inverse + c, inverse_std, mask=mask)
    tl.store(scale + c, a, mask=mask)
    b = tl.load(bias + c, mask=mask, other=0.0) - tl.load(mean + c, mask=mask, other=0.0) * a
    tl.store(shift + c, b, mask=mask)


@triton.jit
def affine_sum(x, scale, shift, residual, ADD: tl.constexpr):
    y = x * scale + shift
    return y + residual if ADD else y


@triton.jit(do_not_specialize=["upper"])
def forward_kernel(
    x, scale, shift, residual, out, count, channels, upper, ADD: tl.constexpr, POWER: tl.constexpr, B: tl.constexpr
):  # fmt: skip
    i = tl.program_id(0) * B + tl.arange(0, B)
    mask = i < count
    c = channel(i, channels, POWER)
    r = tl.load(residual + i, mask=mask, other=0.0).to(tl.float32) if ADD else 0.0
    a, b = tl.load(scale + c, mask=mask, other=0.0), tl.load(shift + c, mask=mask, other=0.0)
    y = affine_sum(tl.load(x + i, mask=mask, other=0.0).to(tl.float32), a, b, r, ADD)
    # In this order NaN stays NaN.
    y = tl.where(y < 0.0, 0.0, y)
    y = tl.where(y > upper, upper, y)
    tl.store(out + i, y, mask=mask)


@triton.jit(do_not_specialize=["positions", "slices", "upper"])
def backward_kernel(
    x, residual, grad, scale, shift, centre, to_x, to_residual, to_scale, to_shift, positions, slices, channels,
    upper, ADD: tl.constexpr, CAPPED: tl.constexpr, P: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """Gradients in x and residual; for each slice the sums behind those in weight and bias."""
    n, part, c = tl.program_id(0), tl.program_id(1), tl.program_id(2) * C + tl.arange(0, C)
    begin, end = slice_of(positions, slices)
    first = n * positions * channels
    a = tl.load(scale + c, mask=c < channels, other=0.0)[None, :]
    b = tl.load(shift + c, mask=c < channels, other=0.0)[None, :]
    mean = tl.load(centre + c, mask=c < channels, other=0.0)[None, :]
    by_x, total = tl.zeros([C], tl.float32), tl.zeros([C], tl.float32)
    for start in range(begin, end, P):
        p = start + tl.arange(0, P)
        mask = (p < end)[:, None] & (c < channels)[None, :]
        at = first + p[:, None] * channels + c[None, :]
        v = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
        g = tl.load(grad + at, mask=mask, other=0.0).to(tl.float32)
        r = tl.load(residual + at, mask=mask, other=0.0).to(tl.float32) if ADD else 0.0
        y = affine_sum(v, a, b, r, ADD)
        g = tl.where(y <= 0.0, 0.0, g)
        if CAPPED:
            g = tl.where(y < upper, g, 0.0)
        total += tl.sum(g, 0)
        by_x += tl.sum(g * (v - mean), 0)
        tl.store(to_x + at, g * a, mask=mask)
        if ADD:
            tl.store(to_residual + at, g, mask=mask)
    to = (part * tl.num_programs(0) + n) * channels + c
    tl.store(to_scale + to, by_x, mask=c < channels)
    tl.store(to_shift + to, total, mask=c < channels)


def _supports(x: Tensor, residual: Tensor | None, weight: Tensor | None, bias: Tensor | None, *rest: Any) -> bool:  # noqa: ARG001
    alike = residual is None or (residual.shape == x.shape and residual.dtype == x.dtype)
    return alike and is_feature_map(x) and weight is not None and bias is not None


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
        affine_kernel[(triton.cdiv(channels, 256),)](
            vector(weight), vector(bias), mean, vector(var), scale, shift, inverse, channels, eps, C=256, **EXACT
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
        # A row for each sample and slice.
        by_x, total = (scale.new_empty(samples * slices, channels) for _ in range(2))
        backward_kernel[samples, slices, blocks](
            x, x if residual is None else residual, like(grads[0], x), scale, shift, mean, to_x,
            to_x if to_residual is None else to_residual, by_x, total, positions, slices, channels, ctx.upper,
            ADD=residual is not None, CAPPED=math.isfinite(ctx.upper), **tile, **EXACT,
        )  # fmt: skip
        return to_x, to_residual, by_x.sum(0).mul_(inverse), total.sum(0), None, None, None, None


batch_norm_act_form = register(batch_norm_act, _supports, _BatchNormAct.apply)
