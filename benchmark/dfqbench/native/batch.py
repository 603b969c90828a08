"""Moments of a batch and what a BatchNorm makes of them, as functions of small tensors, where that saves launches."""

from __future__ import annotations

import torch
from torch import Tensor

from dfqbench.native import binding
from dfqbench.native.passes import Affine


def fits(*tables: Tensor) -> bool:
    """Whether kernels are in use that take these: float32, in order, two dimensions, on their device."""
    return all(
        binding.saves_launches(one.device.type) and one.dtype == torch.float32 and one.ndim == 2 and one.is_contiguous()
        for one in tables
    )


def moments(means: Tensor, variances: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance (C,) of a batch from those of its samples (N, C), `fits`."""
    samples, channels = means.shape
    mean, var = means.new_empty(channels), means.new_empty(channels)
    binding.call("batch_moments", (means, variances, mean, var), samples, channels)
    return mean, var


def moments_backward(means: Tensor, mean: Tensor, to_mean: Tensor, to_var: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of `moments`.

    Args:
        means: (N, C), as given to it.
        mean: (C,), as given by it.
        to_mean: gradient there, (C,).
        to_var: gradient at the variance, (C,).

    Returns:
        Those in the samples' means and variances, (N, C).
    """
    to_means, to_variances = torch.empty_like(means), torch.empty_like(means)
    tensors = (means, mean, to_mean.contiguous(), to_var.contiguous(), to_means, to_variances)
    binding.call("batch_moments_backward", tensors, *means.shape)
    return to_means, to_variances


def affine(layer: Affine, mean: Tensor, var: Tensor, eps: float, samples: int) -> tuple[Tensor, Tensor, Tensor]:
    """Scale and shift (N, C) by which BatchNorm over a batch takes its input; one over the deviation (C,).

    Args:
        layer: scale and shift of what is normalised, for each sample (N, C) or all of them (1, C), `fits`.
        mean: of the batch (C,).
        var: of the batch, biased (C,).
        eps: added to the variance.
        samples: N.
    """
    scale, shift = layer
    rows, channels = scale.shape
    inverse, whole, moved = torch.empty_like(var), *(scale.new_empty(samples, channels) for _ in range(2))
    binding.call("batch_affine", (scale, shift, mean, var, inverse, whole, moved), samples, channels, rows, eps)
    return whole, moved, inverse


def affine_backward(
    sums: Affine, scale: Tensor, mean: Tensor, inverse: Tensor, count: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of BatchNorm over a batch.

    Args:
        sums: with g the gradient at the output, sums of g (x - mean) and of g for each sample (N, C), `fits`.
        scale: (N, C) or (1, C), as given to `affine`.
        mean: of the batch (C,).
        inverse: as given by `affine`.
        count: values behind the batch's moments of a channel.

    Returns:
        Gradients in scale and shift, in the shape of `scale`; incline and offset (C,): incline x + offset is the part
        of the gradient in x that comes by the moments.
    """
    by_x, to_shift = sums
    rows = len(scale)
    to_scales, incline, offset = torch.empty_like(scale), torch.empty_like(mean), torch.empty_like(mean)
    to_shifts = to_shift if rows > 1 else torch.empty_like(scale)
    tensors = (by_x, to_shift, scale, mean, inverse, to_scales, to_shifts, incline, offset)
    binding.call("batch_affine_backward", tensors, *by_x.shape, rows, count)
    return to_scales, to_shifts, incline, offset
