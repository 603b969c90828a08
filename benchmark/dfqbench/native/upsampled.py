"""A 3x3 convolution of a map upsampled by two, as its phases (see `synth.upsampling`), by the library for CPUs.

The caller asks `fits`. Of sixteen multiplications nine are left: a window's sums are multiplied with the small map and
with its differences from one position to the next.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dfqbench.native import binding
from dfqbench.native.convolve import REGISTER
from dfqbench.native.operands import are_plain
from dfqbench.native.passes import like

SUMS = 9
"""Pairs of a row's and a column's sums."""


def fits(x: Tensor, weight: Tensor) -> bool:
    """Whether the library is in use and takes these: float32, no autocast, channels-last, channels fill its registers.

    Args:
        x: (N, C, H, W).
        weight: (O, C, 3, 3).
    """
    return (
        binding.takes(x.device.type)
        and not binding.saves_launches(x.device.type)
        and not torch.is_autocast_enabled(x.device.type)
        and x.dtype == weight.dtype == torch.float32
        and weight.shape[1:] == (x.shape[1], 3, 3)
        and not any(size % REGISTER for size in weight.shape[:2])
        and x.numel() > 0
        and weight.numel() > 0
        and are_plain(x, weight)
        and x.is_contiguous(memory_format=torch.channels_last)
    )


def forward(x: Tensor, sums: Tensor) -> Tensor:
    """The phases (N, 4 O, H + 1, W + 1), channels-last; 0 where they have no place in the woven map.

    Args:
        x: (N, C, H, W), `fits`.
        sums: (9, O, C): rows' sums s = w0 + w1 + w2, -w0 and w2, and columns' likewise, in the order s s; -w0 s, w2 s;
            s -w0, s w2; and the four pairs of -w0 and w2, row by row.
    """
    samples, _, height, width = x.shape
    sums = _checked(x, sums)
    shape = (samples, 4 * sums.shape[1], height + 1, width + 1)
    out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    _call("forward", x, sums, x, sums, out)
    return out


def backward(x: Tensor, sums: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients in `x` and `sums`.

    Args:
        x: as given to `forward`.
        sums: likewise.
        grad: gradient at its output; what has no place in the woven map is not looked at.
    """
    sums = _checked(x, sums)
    if grad.shape != (len(x), 4 * sums.shape[1], x.shape[2] + 1, x.shape[3] + 1):
        raise ValueError(f"a gradient of shape {tuple(grad.shape)} does not fit a map of shape {tuple(x.shape)}")
    to_x, to_sums = torch.empty_like(x), torch.empty_like(sums)
    _call("backward", x, sums, x, sums, like(grad, x), to_x, to_sums)
    return to_x, to_sums


def _checked(x: Tensor, sums: Tensor) -> Tensor:
    if sums.ndim != 3 or sums.shape[0] != SUMS or sums.shape[2] != x.shape[1]:
        raise ValueError(f"sums of shape {tuple(sums.shape)} do not fit a map of shape {tuple(x.shape)}")
    return sums.contiguous()


def _call(name: str, x: Tensor, sums: Tensor, *tensors: Tensor) -> None:
    samples, channels, height, width = x.shape
    binding.call(f"upsampled_{name}", tensors, samples, height, width, channels, sums.shape[1])
