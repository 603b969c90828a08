"""A generator's BatchNorm over the batch with its leaky ReLU, from the phases of an upsampled convolution."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dfqbench.native import batch, woven
from dfqbench.synth.moments import Moments, batch_moments


def woven_norm(phases: Tensor, scale: Tensor, shift: Tensor, eps: float, slope: float) -> Tensor:
    """leaky(scale norm(weave(phases)) + shift), norm without parameters over samples and positions.

    By the compiled passes: neither the woven map nor the normalised one comes into being. Equal up to rounding, first
    derivatives only.

    Args:
        phases: (N, 4 C, H + 1, W + 1), `passes.fits`.
        scale: for each sample and channel (N, C), or for each channel (1, C).
        shift: as `scale`.
        eps: added to the variance.
        slope: of the leaky ReLU.

    Returns:
        (N, C, 2H, 2W), channels-last, in the type of the phases.
    """
    found: Tensor = _WovenNorm.apply(phases, scale, shift, eps, slope)
    return found


class _WovenNorm(torch.autograd.Function):
    """phases, scale, shift -> the woven map."""

    @staticmethod
    def forward(  # noqa: PLR0917 - apply takes no keywords
        ctx: Any, phases: Tensor, scale: Tensor, shift: Tensor, eps: float, slope: float
    ) -> Tensor:
        found = batch_moments(Moments(*woven.moments(phases)))
        if batch.fits(scale, shift):
            *affine, inverse = batch.affine((scale, shift), found.mean, found.var, eps, len(phases))
        else:
            inverse = torch.rsqrt(found.var + eps)
            whole = (scale * inverse).expand(len(phases), -1)
            affine = [whole, torch.addcmul(shift, found.mean, whole, value=-1)]
        ctx.save_for_backward(phases, scale, found.mean, inverse, *affine)
        ctx.slope = slope
        return woven.forward(phases, (affine[0], affine[1]), slope)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        phases, scale, mean, inverse, *affine = ctx.saved_tensors
        by_x, to_shift = woven.sums(phases, grads[0], affine, mean, ctx.slope)
        count = 4 * (phases.shape[2] - 1) * (phases.shape[3] - 1) * phases.shape[0]
        if batch.fits(scale, by_x, to_shift):
            to_scale, to_shift, *of_moments = batch.affine_backward((by_x, to_shift), scale, mean, inverse, count)
        else:
            to_scale = by_x * inverse
            # With z = (x - mean) / deviation and g the gradient there, that in x is
            # (g - mean(g) - z mean(g z)) / deviation, means taken over samples and positions.
            of_g, of_gz = (scale * to_shift).sum(0) / count, (scale * to_scale).sum(0) / count
            incline = -of_gz * inverse.square()
            of_moments = [incline, -of_g * inverse - incline * mean]
            to_scale, to_shift = to_scale.sum_to_size(scale.shape), to_shift.sum_to_size(scale.shape)
        to_phases = woven.backward(phases, grads[0], (affine[0], affine[1]), (of_moments[0], of_moments[1]), ctx.slope)
        return to_phases, to_scale, to_shift, None, None
