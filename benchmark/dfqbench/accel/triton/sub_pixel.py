"""CUDA forms of a generator's BatchNorms: `sub_pixel_norm` in Triton, `standardize` in plain torch."""

# Triton functions have no annotations but those of their constants.
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,misc"
# ruff: noqa: PLR0917, N803

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dfqbench.accel.triton.device import phase_offset, slice_of
from dfqbench.accel.triton.launch import EXACT, MANY_PROGRAMS, ROW, cut, is_feature_map, like, register, rows, vector
from dfqbench.accel.triton.statistics import moments
from dfqbench.synth.generators import standardize
from dfqbench.synth.moments import Moments, batch_moments
from dfqbench.synth.sub_pixel import sub_pixel_norm

OVER = (0, 2, 3)
"""Samples and positions."""


@triton.jit(do_not_specialize=["row", "negative_slope"])
def phase_forward(
    phases, scale, shift, out, count, row, height: tl.constexpr, width: tl.constexpr, channels: tl.constexpr,
    negative_slope, B: tl.constexpr,
):  # fmt: skip
    """`row` is the stride of the samples' scales and shifts: 0 where all share one."""
    i = tl.program_id(0) * B + tl.arange(0, B)
    mask = i < count
    c, position = i % channels, i // channels
    n, p = position // (4 * height * width), position % (4 * height * width)
    at = n * (height + 1) * (width + 1) * 4 * channels + phase_offset(p, channels, width) + c
    to = n * row + c
    a, b = tl.load(scale + to, mask=mask, other=0.0), tl.load(shift + to, mask=mask, other=0.0)
    y = tl.load(phases + at, mask=mask, other=0.0).to(tl.float32) * a + b
    tl.store(out + i, tl.where(y < 0.0, y * negative_slope, y), mask=mask)


@triton.jit(do_not_specialize=["slices", "row", "negative_slope"])
def phase_sums(
    phases, grad, scale, shift, centre, by_x, total, row, height: tl.constexpr, width: tl.constexpr, slices,
    channels: tl.constexpr, negative_slope, P: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """Sums over a slice of positions: of the gradient g before the leaky ReLU, and of g (x - mean)."""
    n, part, c = tl.program_id(0), tl.program_id(1), tl.program_id(2) * C + tl.arange(0, C)
    positions = 4 * height * width
    begin, end = slice_of(positions, slices)
    first = n * (height + 1) * (width + 1) * 4 * channels
    a = tl.load(scale + n * row + c, mask=c < channels, other=0.0)[None, :]
    b = tl.load(shift + n * row + c, mask=c < channels, other=0.0)[None, :]
    mean = tl.load(centre + c, mask=c < channels, other=0.0)[None, :]
    sum_gx, sum_g = tl.zeros([C], tl.float32), tl.zeros([C], tl.float32)
    for start in range(begin, end, P):
        p = start + tl.arange(0, P)
        mask = (p < end)[:, None] & (c < channels)[None, :]
        at = first + phase_offset(p, channels, width)[:, None] + c[None, :]
        v = tl.load(phases + at, mask=mask, other=0.0).to(tl.float32)
        g = tl.load(grad + (n * positions + p[:, None]) * channels + c[None, :], mask=mask, other=0.0).to(tl.float32)
        g = tl.where(v * a + b > 0.0, g, g * negative_slope)
        sum_g += tl.sum(g, 0)
        sum_gx += tl.sum(tl.where(mask, g * (v - mean), 0.0), 0)
    to = (part * tl.num_programs(0) + n) * channels + c
    tl.store(by_x + to, sum_gx, mask=c < channels)
    tl.store(total + to, sum_g, mask=c < channels)


@triton.jit(do_not_specialize=["row", "negative_slope"])
def phase_backward(
    phases, grad, scale, shift, slope_of_moments, offset, out, count, row, height: tl.constexpr, width: tl.constexpr,
    channels: tl.constexpr, negative_slope, B: tl.constexpr,
):  # fmt: skip
    """The gradient in the phases; zero on the border that is no part of the merged map."""
    i = tl.program_id(0) * B + tl.arange(0, B)
    mask = i < count
    c, position = i % channels, i // channels
    phase, position = position % 4, position // 4
    a, b = phase // 2, phase % 2
    x, position = position % (width + 1) - b, position // (width + 1)
    y, n = position % (height + 1) - a, position // (height + 1)
    in_map = mask & (y >= 0) & (y < height) & (x >= 0) & (x < width)
    merged = ((n * 2 * height + 2 * y + a) * 2 * width + 2 * x + b) * channels + c
    to = n * row + c
    v = tl.load(phases + i, mask=in_map, other=0.0).to(tl.float32)
    g = tl.load(grad + merged, mask=in_map, other=0.0).to(tl.float32)
    s = tl.load(scale + to, mask=in_map, other=0.0)
    g = tl.where(v * s + tl.load(shift + to, mask=in_map, other=0.0) > 0.0, g, g * negative_slope)
    of_moments = tl.load(offset + c, mask=in_map, other=0.0) + tl.load(slope_of_moments + c, mask=in_map, other=0.0) * v
    tl.store(out + i, of_moments + g * s, mask=mask)


class _SubPixelNorm(torch.autograd.Function):
    """Normalise from the phases, without storing the merged or the normalised map."""

    @staticmethod
    def forward(ctx: Any, phases: Tensor, scale: Tensor, shift: Tensor, eps: float, slope: float) -> Tensor:
        samples, channels, height, width = _merged_shape(phases)
        scale, shift = vector(scale), vector(shift)
        sizes = samples, height * width, channels
        means, variances = moments(phases, sizes, phase_width=width // 2, programs=MANY_PROGRAMS)
        of_batch = batch_moments(Moments(means, variances))
        mean, inverse = of_batch.mean, torch.rsqrt(of_batch.var + eps)
        a = scale * inverse
        b = shift - mean * a
        out = torch.empty(
            (samples, channels, height, width),
            dtype=phases.dtype,
            device=phases.device,
            memory_format=torch.channels_last,
        )
        phase_forward[rows(out.numel())](
            phases, a, b, out, out.numel(), _row(a), height // 2, width // 2, channels, slope, B=ROW, **EXACT
        )
        ctx.save_for_backward(phases, scale, mean, inverse, a, b)
        ctx.slope = slope
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        phases, scale, mean, inverse, a, b = ctx.saved_tensors
        samples, channels, height, width = _merged_shape(phases)
        grad = like(grads[0], phases)
        tile, slices, blocks = cut(samples, height * width, channels, MANY_PROGRAMS)
        by_x, total = (scale.new_empty(slices, samples, channels) for _ in range(2))
        phase_sums[samples, slices, blocks](
            phases, grad, a, b, mean, by_x, total, _row(a), height // 2, width // 2, slices, channels, ctx.slope,
            **tile, **EXACT,
        )  # fmt: skip
        # Over slices, and over samples where these share scale and shift.
        over: Any = 0 if len(scale) > 1 else (0, 1)
        to_scale = by_x.sum(over).view_as(scale) * inverse
        to_shift = total.sum(over).view_as(scale)
        # The moments' part of the gradient, as a function of x: slope x + offset.
        count = samples * height * width
        of_moments = (to_scale * scale).sum(0) * inverse.square() / -count
        offset = (to_shift * scale).sum(0) * inverse / -count - of_moments * mean
        out = torch.empty_like(phases)
        phase_backward[rows(out.numel())](
            phases, grad, a, b, of_moments, offset, out, out.numel(), _row(a), height // 2, width // 2, channels,
            ctx.slope, B=ROW, **EXACT,
        )  # fmt: skip
        return out, to_scale, to_shift, None, None


def _merged_shape(phases: Tensor) -> tuple[int, int, int, int]:
    samples, channels, height, width = phases.shape
    return samples, channels // 4, 2 * (height - 1), 2 * (width - 1)


def _row(table: Tensor) -> int:
    return table.shape[1] if len(table) > 1 else 0


class _Standardize(torch.autograd.Function):
    """Standardize by reductions: torch's BatchNorm has only one block of threads a channel, three for images."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float) -> Tensor:
        var, mean = torch.var_mean(x, OVER, correction=0, keepdim=True)
        inverse = torch.rsqrt(var + eps)
        out = (x - mean).mul_(inverse)
        ctx.save_for_backward(out, inverse)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        # With z the output and g its gradient: (g - mean(g) - z mean(g z)) / deviation.
        out, inverse = ctx.saved_tensors
        of_gz = (grads[0] * out).mean(OVER, keepdim=True)
        return (grads[0] - grads[0].mean(OVER, keepdim=True)).addcmul_(out, of_gz, value=-1).mul_(inverse), None


sub_pixel_norm_form = register(
    sub_pixel_norm,
    lambda phases, *rest: is_feature_map(phases),  # noqa: ARG005
    _SubPixelNorm.apply,
)
standardize_form = register(
    standardize,
    lambda x, eps: x.ndim == 4 and x.dtype == torch.float32,  # noqa: ARG005
    _Standardize.apply,
)
