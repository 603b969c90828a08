"""CUDA forms of a generator's BatchNorms: `sub_pixel_norm` in Triton, `standardize` in plain torch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dfqbench.accel.triton import sub_pixel_kernels as kernels
from dfqbench.accel.triton.batch_norm_act import add_up
from dfqbench.accel.triton.launch import EXACT, MANY_PROGRAMS, ROW, cut, is_feature_map, like, register, rows, vector
from dfqbench.accel.triton.statistics import moments_by_slices
from dfqbench.synth.generators import standardize
from dfqbench.synth.sub_pixel import sub_pixel_norm

OVER = (0, 2, 3)
"""Samples and positions."""


@register(sub_pixel_norm, lambda phases, *rest: is_feature_map(phases))  # noqa: ARG005
def sub_pixel_norm_form(phases: Tensor, scale: Tensor, shift: Tensor, eps: float, slope: float) -> Tensor:
    """Normalise from the phases: neither the merged nor the normalised map comes into being."""
    out: Tensor = _SubPixelNorm.apply(phases, scale, shift, eps, slope)
    return out


class _SubPixelNorm(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0917 - apply takes no keywords
        ctx: Any, phases: Tensor, scale: Tensor, shift: Tensor, eps: float, slope: float
    ) -> Tensor:
        samples, channels, height, width = _merged_shape(phases)
        scale, shift = vector(scale), vector(shift)
        means, variances = (scale.new_empty(samples, channels) for _ in range(2))

        def launch(grid: Any, parts: Any, slices: int, tile: dict[str, int]) -> None:
            kernels.phase_statistics[grid](phases, *parts, height // 2, width // 2, slices, channels, **tile, **EXACT)

        moments_by_slices(launch, means, variances, (samples, height * width, channels), programs=MANY_PROGRAMS)
        mean, var, inverse = (scale.new_empty(channels) for _ in range(3))
        kernels.batch_moments[(-(-channels // 16),)](
            means, variances, mean, var, samples, channels, P=256, C=16, **EXACT
        )
        whole, moved = (scale.new_empty(samples, channels) for _ in range(2))
        kernels.batch_affine[(-(-samples * channels // 256),)](
            scale, shift, mean, var, inverse, whole, moved, samples, channels, eps, ROWS=len(scale) > 1, B=256, **EXACT
        )
        out = torch.empty(
            (samples, channels, height, width),
            dtype=phases.dtype,
            device=phases.device,
            memory_format=torch.channels_last,
        )
        kernels.phase_forward[rows(out.numel())](
            phases, whole, moved, out, out.numel(), height // 2, width // 2, channels, slope, B=ROW, **EXACT
        )
        ctx.save_for_backward(phases, scale, mean, inverse, whole, moved)
        ctx.slope = slope
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        phases, scale, mean, inverse, whole, moved = ctx.saved_tensors
        samples, channels, height, width = _merged_shape(phases)
        grad = like(grads[0], phases)
        sums = [scale.new_empty(samples, channels) for _ in range(2)]
        tile, slices, blocks = cut(samples, height * width, channels, MANY_PROGRAMS)
        partial = sums if slices == 1 else [one.new_empty(slices, *one.shape) for one in sums]
        kernels.phase_sums[samples, slices, blocks](
            phases, grad, whole, moved, mean, *partial, height // 2, width // 2, slices, channels, ctx.slope, **tile,
            **EXACT,
        )  # fmt: skip
        if slices > 1:
            add_up(partial, None, sums, slices, samples * channels)
        per_sample = len(scale) > 1
        to_scale, slope, offset = torch.empty_like(scale), torch.empty_like(mean), torch.empty_like(mean)
        to_shift = sums[1] if per_sample else torch.empty_like(scale)
        kernels.batch_affine_backward[(-(-channels // 16),)](
            *sums, scale, mean, inverse, to_scale, to_shift, slope, offset, samples, channels,
            float(samples * height * width), ROWS=per_sample, P=256, C=16, **EXACT,
        )  # fmt: skip
        out = torch.empty_like(phases)
        kernels.phase_backward[rows(out.numel())](
            phases, grad, whole, moved, slope, offset, out, out.numel(), height // 2, width // 2, channels, ctx.slope,
            B=ROW, **EXACT,
        )  # fmt: skip
        return out, to_scale, to_shift, None, None


def _merged_shape(phases: Tensor) -> tuple[int, int, int, int]:
    samples, channels, height, width = phases.shape
    return samples, channels // 4, 2 * (height - 1), 2 * (width - 1)


@register(standardize, lambda x, eps: x.dtype == torch.float32)  # noqa: ARG005
def standardize_form(x: Tensor, eps: float) -> Tensor:
    """Standardize by reductions: torch's BatchNorm runs one block of threads a channel, and images have three."""
    out: Tensor = _Standardize.apply(x, eps)
    return out


class _Standardize(torch.autograd.Function):
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
