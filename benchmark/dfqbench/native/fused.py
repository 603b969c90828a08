"""3x3 convolutions with the BatchNorm layer, residual, ReLU and rounding that follow, by the library for CPUs.

As functions of tensors; the caller asks `fits`. Values are those of `convolve` and `passes` one after another, bit for
bit but for the gradients of scale and shift, whose sums are taken in another order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dfqbench.native import binding, convolve, passes
from dfqbench.native.passes import Grid, check, like, plain

MOST_CHANNELS = 64
"""Of more (`SHARE` in winograd.h) the sums of a gradient in the weight do not stay in cache beside a strip."""


class Layer(NamedTuple):
    """What a BatchNorm layer in eval mode amounts to, float32 (C,) each.

    Attributes:
        scale: of its input.
        shift: added to it.
        mean: its running mean.
        inverse: one over its running deviation.
    """

    scale: Tensor
    shift: Tensor
    mean: Tensor
    inverse: Tensor


class Gradients(NamedTuple):
    """Those of `forward`; None where not wanted.

    Attributes:
        x: (N, C, H, W).
        residual: (N, O, H, W); None without one.
        weight: (O, C, 3, 3).
        scale: (O,), that of BatchNorm's weight.
        shift: (O,), that of its bias.
    """

    x: Tensor | None
    residual: Tensor | None
    weight: Tensor | None
    scale: Tensor
    shift: Tensor


def fits_channels(inputs: int, outputs: int) -> bool:
    """Whether a convolution between so many channels is worth asking `fits` about."""
    return inputs % convolve.REGISTER == 0 and outputs % convolve.REGISTER == 0


def fits(x: Tensor, weight: Tensor, numbers: Sequence[object]) -> bool:
    """Whether the library for CPUs is in use and takes this convolution.

    Args:
        x: (N, C, H, W), float32.
        weight: (O, C, 3, 3), likewise.
        numbers: strides, padding, dilation and groups.
    """
    return (
        not binding.saves_launches(x.device.type)
        and convolve.fits(x, weight, numbers)
        and weight.shape[0] > convolve.FEW
        and (weight.is_contiguous() or weight.is_contiguous(memory_format=torch.channels_last))
    )


def forward(
    x: Tensor, weight: Tensor, layer: Layer, grid: Grid, *, residual: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The map y = conv2d(x, weight, padding=1), and scale y + shift + residual on a grid whose lowest point is 0.

    Args:
        x: (N, C, H, W), `fits`.
        weight: (O, C, 3, 3), likewise.
        layer: of O channels.
        grid: S, Z and the ends.
        residual: (N, O, H, W).

    Returns:
        Both (N, O, H, W), channels-last.

    Raises:
        ValueError: sizes do not fit.
    """
    samples, _, height, width = x.shape
    size = (samples, weight.shape[0], height, width)
    y = torch.empty(size, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    out = torch.empty_like(y)
    check(y, (residual,), layer)
    residual = None if residual is None else like(residual, x)
    scale, shift, *ends = grid
    tensors = (x, weight, *map(plain, layer[:2]), residual, plain(scale), plain(shift), y, out)
    binding.call("fused_forward", tensors, *_sizes(x, weight), *ends)
    return y, out


def backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    y: Tensor,
    layer: Layer,
    *,
    residual: Tensor | None = None,
    wanted: Sequence[bool] = (True, True),
    onto: Tensor | None = None,
) -> Gradients:
    """Gradients of `forward`'s second result: that of ReLU before rounding, whose clamped elements pass too.

    Args:
        grad: (N, O, H, W), at it.
        x: as given to it.
        weight: likewise.
        y: its first result.
        layer: as given to it.
        residual: likewise.
        wanted: whether those in `x` and in the weight.
        onto: to which that in `x` is added, in place: (N, C, H, W), channels-last, float32.

    Raises:
        ValueError: sizes or memory orders do not fit.
    """
    check(y, (residual, grad), layer)
    if weight.shape[:2] != (y.shape[1], x.shape[1]) or (len(y), *y.shape[2:]) != (len(x), *x.shape[2:]):
        raise ValueError(f"a map of shape {tuple(y.shape)} does not fit one of shape {tuple(x.shape)}")
    if onto is not None and not _is_as(onto, x):
        raise ValueError(f"a gradient of shape {tuple(onto.shape)} is not as a map of shape {tuple(x.shape)}")
    if max(weight.shape[:2]) > MOST_CHANNELS:
        return _one_after_another(grad, x, weight, y, layer, residual=residual, wanted=wanted, onto=onto)
    to_x = (torch.empty_like(x) if onto is None else onto) if wanted[0] else None
    to_residual = None if residual is None else torch.empty_like(y)
    residual = None if residual is None else like(residual, y)
    to_weight = torch.empty_like(weight) if wanted[1] else None
    to_scale, to_shift = (x.new_empty(len(weight)) for _ in range(2))
    found = Gradients(to_x, to_residual, to_weight, to_scale, to_shift)
    tensors = (x, weight, y, residual, like(grad, y), *map(plain, layer), *found)
    binding.call("fused_backward", tensors, *_sizes(x, weight), onto is not None)
    return found


def _is_as(grad: Tensor, x: Tensor) -> bool:
    return grad.shape == x.shape and grad.dtype == x.dtype and grad.is_contiguous(memory_format=torch.channels_last)


def _one_after_another(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    y: Tensor,
    layer: Layer,
    *,
    residual: Tensor | None,
    wanted: Sequence[bool],
    onto: Tensor | None,
) -> Gradients:
    inner, to_residual, to_scale, to_shift = passes.affine_backward(
        y, grad, layer[:2], layer.mean, inverse=layer.inverse, residual=residual, ceiling=torch.inf
    )
    to_x, to_weight = convolve.gradients(inner, x, weight, wanted)
    if to_x is not None and onto is not None:
        to_x = onto.add_(to_x)
    return Gradients(to_x, to_residual, to_weight, to_scale, to_shift)


def _sizes(x: Tensor, weight: Tensor) -> tuple[int, ...]:
    samples, channels, height, width = x.shape
    return samples * height * width, height, width, channels, len(weight), *(weight.stride(i) for i in (0, 1, 3))
