"""3x3 convolutions by the compiled passes, as functions of tensors. The caller asks `fits`.

On GPUs those between few channels, where libraries are slow; on CPUs float32 ones, with a quarter of the
multiplications (Winograd's minimal filtering, F(4x4, 3x3)) or to few channels: equal up to rounding. By that the
former lose some 1e-6 of the largest numbers that a tile of 4x4 outputs sees, about twice as much as torch's, and at all
its outputs: where every window of theirs is zero, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dfqbench.native import binding
from dfqbench.native.passes import MOST_ELEMENTS, like, plain

MOST_CHANNELS = 64
"""On a GPU libraries' convolutions are as fast with more of them."""
FEW_INPUTS, FEWEST_OUTPUTS = 32, 16
"""For the gradient in the weight likewise, unless inputs are few, or outputs not too few."""
REGISTER = 16
"""On a CPU channels are a multiple of what the widest registers hold,"""
FEW = 4
"""or at most so many outputs;"""
MOST_WEIGHTS = 1 << 18
"""and pairs of them so few that what weights are transformed to fits in 36 MiB."""


def fits(x: Tensor, weight: Tensor, numbers: Sequence[object]) -> bool:
    """Whether passes are in use for this convolution: 3x3, step by step over a margin of one.

    Args:
        x: (N, C, H, W), float32 or, on a GPU, bfloat16.
        weight: (O, C, 3, 3), likewise.
        numbers: strides, padding, dilation and groups.
    """
    return (
        binding.takes(x.device.type)
        and weight.ndim == x.ndim == 4
        and weight.shape[1:] == (x.shape[1], 3, 3)
        and [pair(one) for one in numbers[:3]] == [(1, 1)] * 3
        and numbers[3] == 1
        and _in_line(weight)
        and x.numel() > 0
        and x.is_contiguous(memory_format=torch.channels_last)
        and (_is_narrow(x, weight) if binding.saves_launches(x.device.type) else _fills_registers(x, weight))
    )


def convolved(x: Tensor, weight: Tensor, *, factor: Tensor | None = None, dtype: torch.dtype | None = None) -> Tensor:
    """conv2d(x, weight, padding=1), summed in float32 and rounded once.

    Args:
        x: (N, C, H, W), `fits`.
        weight: (O, C, 3, 3), likewise; taken in the type of `x`.
        factor: (O,) float32, multiplied with the sums.
        dtype: of the result; None: that of `x`.

    Returns:
        (N, O, H, W), channels-last.
    """
    return _convolved(x, weight, factor, dtype, back=False)


def data_gradient(grad: Tensor, weight: Tensor, *, dtype: torch.dtype | None = None) -> Tensor:
    """The gradient (N, C, H, W) in the input of `convolved`.

    Args:
        grad: (N, O, H, W), in the type of the input.
        weight: as given to `convolved`.
        dtype: of the result; None: that of `grad`.

    Raises:
        ValueError: on a CPU, of a convolution to at most `FEW` channels; or sizes do not fit.
    """
    if not _fits_data_gradient(weight):
        raise ValueError(f"the gradient of a convolution to {weight.shape[0]} channels is torch's")
    return _convolved(like(grad, grad), weight, None, dtype, back=True)


def fits_weight_gradient(weight: Tensor) -> bool:
    """Whether `weight_gradient` is worth its while for a weight (O, C, 3, 3) that `fits`."""
    return (
        not binding.saves_launches(weight.device.type)
        or weight.shape[1] <= FEW_INPUTS
        or weight.shape[0] >= FEWEST_OUTPUTS
    )


def weight_gradient(x: Tensor, grad: Tensor, weight: Tensor, *, factor: Tensor | None = None) -> Tensor:
    """The gradient in the weight of `convolved`, float32, in the memory order of a weight without gaps.

    Args:
        x: as given to `convolved`.
        grad: (N, O, H, W), in the type of `x`.
        weight: (O, C, 3, 3).
        factor: (O,) float32, multiplied with the sums.
    """
    out = torch.empty_like(weight, dtype=torch.float32)
    if not _in_line(out):
        # The order of a weight with gaps is not always kept.
        out = torch.empty(weight.shape, dtype=torch.float32, device=weight.device)
    grad = like(grad, x)
    _check(x, weight, grad)
    strides = out.stride(0), out.stride(1), out.stride(3)
    factor = None if factor is None else plain(factor.expand(weight.shape[0]))
    binding.call("weight_gradient", (x, grad, factor, out), *_sizes(x), weight.shape[0], *strides)
    return out


def gradients(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    wanted: Sequence[bool],
    *,
    dtype: torch.dtype | None = None,
    factor: Tensor | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients in input and weight of `convolved`, torch's where ours is not worth it; the latter float32.

    Args:
        grad: (N, O, H, W), in the type of `x`.
        x: as given to `convolved`.
        weight: likewise.
        wanted: which of the two.
        dtype: of that in the input; None: that of `grad`.
        factor: (O,) or (1,) float32, multiplied with that in the weight.
    """
    ours = [_fits_data_gradient(weight), fits_weight_gradient(weight)]
    to_x = data_gradient(grad, weight, dtype=dtype) if wanted[0] and ours[0] else None
    to_weight = weight_gradient(x, grad, weight, factor=factor) if wanted[1] and ours[1] else None
    theirs = [want and not our for want, our in zip(wanted, ours, strict=True)]
    if any(theirs):
        of_x, of_weight = torchs_gradients(grad, x, weight, theirs)
        if theirs[0]:
            to_x = of_x.to(dtype or grad.dtype)
        if theirs[1]:
            to_weight = of_weight.to(torch.float32)
            to_weight = to_weight if factor is None else to_weight * factor.view(-1, 1, 1, 1)
    return to_x, to_weight


def torchs_gradients(
    grad: Tensor, x: Tensor, weight: Tensor, wanted: Sequence[bool], *, step: int = 1, margin: int = 1
) -> Any:
    """As `gradients`, by torch, in the type of `x`; they can be differentiated again. Those not wanted are None."""
    numbers = [step, step], [margin, margin], [1, 1]
    return torch.ops.aten.convolution_backward(
        grad, x, weight.to(x.dtype), None, *numbers, False, [0, 0], 1, [*wanted, False]
    )[:2]


def _in_line(weight: Tensor) -> bool:
    """Whether the nine taps lie evenly one after another."""
    return weight.stride(2) == 3 * weight.stride(3)


def _is_narrow(x: Tensor, weight: Tensor) -> bool:
    """Whether the kernels for GPUs take these, and are worth it."""
    return (
        max(weight.shape[:2]) <= MOST_CHANNELS
        and x.dtype in binding.TYPES
        and weight.dtype in binding.TYPES
        and x.numel() // x.shape[1] * MOST_CHANNELS < MOST_ELEMENTS
    )


def _fills_registers(x: Tensor, weight: Tensor) -> bool:
    """Whether the library for CPUs takes these."""
    outputs, inputs = weight.shape[:2]
    whole = inputs % REGISTER == 0 and (outputs % REGISTER == 0 or outputs <= FEW)
    return whole and 0 < inputs * outputs <= MOST_WEIGHTS and x.dtype == weight.dtype == torch.float32


def _fits_data_gradient(weight: Tensor) -> bool:
    """Whether `data_gradient` takes a weight that `fits`, and is worth its while."""
    return binding.saves_launches(weight.device.type) or weight.shape[0] > FEW


def _convolved(x: Tensor, weight: Tensor, factor: Tensor | None, dtype: torch.dtype | None, *, back: bool) -> Tensor:
    samples, channels, height, width = x.shape
    outer, inner, by_outer, by_inner = weight.shape[0], weight.shape[1], weight.stride(0), weight.stride(1)
    if back:
        outer, inner, by_outer, by_inner = inner, outer, by_inner, by_outer
    if channels != inner:
        raise ValueError(f"a weight of shape {tuple(weight.shape)} does not fit a map of shape {tuple(x.shape)}")
    out = torch.empty(
        (samples, outer, height, width),
        dtype=dtype or x.dtype,
        device=x.device,
        memory_format=torch.channels_last,
    )
    factor = None if factor is None else plain(factor.expand(outer))
    numbers = (*_sizes(x), outer, by_outer, by_inner, weight.stride(3), back)
    binding.call("convolved", (x, weight, factor, out), *numbers)
    return out


def _sizes(x: Tensor) -> tuple[int, int, int, int]:
    samples, channels, height, width = x.shape
    return samples * height * width, height, width, channels


def _check(x: Tensor, weight: Tensor, grad: Tensor) -> None:
    if weight.shape[:2] != (grad.shape[1], x.shape[1]) or grad.shape[2:] != x.shape[2:] or len(grad) != len(x):
        raise ValueError(f"a gradient of shape {tuple(grad.shape)} does not fit a map of shape {tuple(x.shape)}")


def pair(number: object) -> tuple[object, ...]:
    """Down and across, of one number for both or of two."""
    return tuple(number) if isinstance(number, Sequence) and not isinstance(number, str) else (number, number)
