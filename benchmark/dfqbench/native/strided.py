"""Convolutions that take steps, over windows of any size, by the library for CPUs, as functions of tensors.

The caller asks `fits`. Sums are torch's up to their order; there is no trick but rows that lie well in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dfqbench.native import binding
from dfqbench.native.convolve import FEW, REGISTER, pair
from dfqbench.native.passes import like

MOST_WEIGHTS = 1 << 17
"""Larger weights do not stay in cache from row to row; torch's convolutions are as fast there."""
MOST_STEPS = 4
"""Of few channels all phases, as many as squares of a step, are worked on at once."""


class Steps(NamedTuple):
    """How a window goes over a map, the same down and across.

    Attributes:
        step: positions from one window to the next, two to `MOST_STEPS`.
        margin: zeros around the map.
    """

    step: int
    margin: int


def fits(x: Tensor, weight: Tensor, numbers: Sequence[object]) -> Steps | None:
    """How this convolution goes over its input, where the library is in use and takes it; else None.

    Args:
        x: (N, C, H, W), float32.
        weight: (O, C, K, K), likewise.
        numbers: strides, padding, dilation and groups.
    """
    steps = _steps(numbers)
    if (
        steps is None
        or not binding.takes(x.device.type)
        or binding.saves_launches(x.device.type)
        or not x.dtype == weight.dtype == torch.float32
        or not weight.ndim == x.ndim == 4
        or x.shape[1] != weight.shape[1]
        or not x.is_contiguous(memory_format=torch.channels_last)
    ):
        return None
    outputs, inputs, side, across = weight.shape
    whole = outputs % REGISTER == 0 and (inputs % REGISTER == 0 or inputs <= FEW)
    seen = min(x.shape[2:]) + 2 * steps.margin >= side == across
    return steps if whole and seen and x.numel() > 0 and 0 < weight.numel() <= MOST_WEIGHTS else None


def convolved(x: Tensor, weight: Tensor, steps: Steps) -> Tensor:
    """conv2d(x, weight, stride, padding), (N, O, H', W'), channels-last.

    Args:
        x: (N, C, H, W), `fits`.
        weight: (O, C, K, K), likewise.
        steps: as `fits` gave it.
    """
    shape = (len(x), len(weight), *_outer(x, weight, steps))
    out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    binding.call("strided", (x, like(weight, x), out), *_sizes(x, weight, steps))
    return out


def gradients(
    grad: Tensor, x: Tensor, weight: Tensor, steps: Steps, wanted: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients in input and weight of `convolved`, channels-last.

    Args:
        grad: (N, O, H', W').
        x: as given to `convolved`.
        weight: likewise.
        steps: likewise.
        wanted: which of the two.

    Raises:
        ValueError: sizes do not fit.
    """
    if grad.shape != (len(x), len(weight), *_outer(x, weight, steps)):
        raise ValueError(f"a gradient of shape {tuple(grad.shape)} does not fit a map of shape {tuple(x.shape)}")
    grad, sizes = like(grad, x), _sizes(x, weight, steps)
    to_x = torch.empty_like(x) if wanted[0] else None
    if to_x is not None:
        binding.call("strided_data_gradient", (grad, like(weight, x), to_x), *sizes)
    to_weight = torch.empty_like(weight, memory_format=torch.channels_last) if wanted[1] else None
    if to_weight is not None:
        binding.call("strided_weight_gradient", (x, grad, to_weight), *sizes)
    return to_x, to_weight


def _steps(numbers: Sequence[object]) -> Steps | None:
    strides, padding, dilation = map(pair, numbers[:3])
    if len(strides) != 2 or len(padding) != 2 or dilation != (1, 1) or numbers[3] != 1:
        return None
    step, margin = strides[0], padding[0]
    if not isinstance(step, int) or not isinstance(margin, int) or (step, margin) != (strides[1], padding[1]):
        return None
    return Steps(step, margin) if 1 < step <= MOST_STEPS and margin >= 0 else None


def _outer(x: Tensor, weight: Tensor, steps: Steps) -> list[int]:
    return [(size + 2 * steps.margin - weight.shape[3]) // steps.step + 1 for size in x.shape[2:]]


def _sizes(x: Tensor, weight: Tensor, steps: Steps) -> tuple[int, ...]:
    samples, channels, height, width = x.shape
    return samples, height, width, channels, weight.shape[0], weight.shape[3], *steps
