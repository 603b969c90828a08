"""Shortcuts without parameters by the library for CPUs: every n-th position, and zeros for new channels."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dfqbench.native import binding
from dfqbench.native.passes import like


class Shortcut(NamedTuple):
    """What a shortcut does.

    Attributes:
        step: positions from one to the next, down and across.
        before: new channels before the map's own.
        after: and behind them.
    """

    step: int
    before: int
    after: int


def fits(x: Tensor) -> bool:
    """Whether the library is in use and takes a map (N, C, H, W), channels-last."""
    return (
        binding.takes(x.device.type)
        and not binding.saves_launches(x.device.type)
        and x.dtype in binding.TYPES
        and x.ndim == 4
        and x.numel() > 0
        and x.is_contiguous(memory_format=torch.channels_last)
    )


def shortened(x: Tensor, cut: Shortcut) -> Tensor:
    """The shortcut of a map (N, C, H, W) that `fits`, channels-last."""
    out = torch.empty(_size(x.shape, cut), dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    _call("shortcut", x, out, x.shape, cut)
    return out


def gradient(grad: Tensor, size: torch.Size, cut: Shortcut) -> Tensor:
    """The gradient in a map of a size (N, C, H, W), channels-last.

    Raises:
        ValueError: the gradient at the shortcut's output is not of its size.
    """
    if grad.shape != _size(size, cut):
        raise ValueError(f"a gradient of shape {tuple(grad.shape)} does not fit a map of shape {tuple(size)}")
    to_x = torch.empty(size, dtype=grad.dtype, device=grad.device, memory_format=torch.channels_last)
    _call("shortcut_gradient", like(grad, to_x), to_x, size, cut)
    return to_x


def _size(size: torch.Size, cut: Shortcut) -> tuple[int, ...]:
    samples, channels, *sides = size
    return samples, cut.before + channels + cut.after, *(-(-side // cut.step) for side in sides)


def _call(name: str, taken: Tensor, out: Tensor, size: torch.Size, cut: Shortcut) -> None:
    samples, channels, height, width = size
    binding.call(f"{name}_{binding.TYPES[out.dtype]}", (taken, out), samples, height, width, channels, *cut)
