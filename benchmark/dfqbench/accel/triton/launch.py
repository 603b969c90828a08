"""Registration of kernels for operators, and the sizes of their launches."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
import triton
from torch import Tensor

from dfqbench.accel import backend
from dfqbench.quant.operators import NAMESPACE

ROW = 1024
"""Elements of a program that processes them in a row."""
TILE = 4096
"""Elements of a tile of positions and channels."""
LARGE_TILE = 16384
"""The same where one tile, which is then read once, has all positions of a sample."""
FEWEST_PROGRAMS, MANY_PROGRAMS, MOST_SLICES = 128, 1024, 64
"""Programs and slices of a kernel that sums over positions: one for each multiprocessor of a large GPU if slices need
another kernel that pools them, more if sums are pooled anyway."""
MOST_ELEMENTS = 1 << 31
"""Kernels count in 32 bits."""
FEWEST_CHANNELS = 8
"""With fewer channels torch's own kernels are faster."""
TYPES = (torch.float32, torch.bfloat16)
EXACT = {"enable_fp_fusion": False}
"""Products are rounded before they are added, as torch's are."""
KEYS = ("AutogradCUDA", "CUDA")
"""Dispatch keys of the forms: autograd's, since a form has its own gradient, and the one below it."""

_LIBRARY: Any = torch.library.Library(NAMESPACE, "IMPL")  # type: ignore[no-untyped-call]

Form = Callable[..., Any]


def register(operator: Form, supports: Callable[..., bool], form: Form) -> Form:
    """Register a function as the CUDA form of an operator.

    The operator's definition computes calls that the form does not support, and all calls while kernels are not in use.

    Args:
        operator: as made by `dfqbench.quant.operators.operator`.
        supports: whether the form takes these arguments.
        form: a function of the same arguments, by position.

    Returns:
        The function that calls form or definition; its attribute `__wrapped__` is the form.
    """
    definition: Form = operator.__wrapped__  # type: ignore[attr-defined]

    @wraps(form)
    def dispatch(*args: Any) -> Any:
        return form(*args) if backend.enabled() and supports(*args) else definition(*args)

    for key in KEYS:
        _LIBRARY.impl(definition.__name__, dispatch, key)
    return dispatch


def is_feature_map(x: Tensor) -> bool:
    """Check that x is (N, C, H, W), channels-last, float32 or bfloat16, with enough channels."""
    return (
        x.ndim == 4
        and x.dtype in TYPES
        and x.shape[1] >= FEWEST_CHANNELS
        and 0 < x.numel() < MOST_ELEMENTS
        and x.is_contiguous(memory_format=torch.channels_last)
    )


def is_dense(x: Tensor) -> bool:
    """Check that x is float32 and contiguous or channels-last."""
    return (
        x.dtype == torch.float32
        and 0 < x.numel() < MOST_ELEMENTS
        and (x.is_contiguous() or (x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)))
    )


def like(values: Tensor, x: Tensor) -> Tensor:
    """Return a map in the type of `x`, channels-last."""
    return values.to(x.dtype).contiguous(memory_format=torch.channels_last)


def vector(values: Tensor) -> Tensor:
    """Return numbers of channels as kernels read them: float32, contiguous."""
    return values.to(torch.float32).contiguous()


def rows(count: int) -> tuple[int]:
    """Return the grid of a kernel that processes `count` elements in a row."""
    return (triton.cdiv(count, ROW),)


def elements(channels: int) -> dict[str, int]:
    """Return the constants of a kernel that processes elements in a row (see `device.channel`)."""
    return {"POWER": channels if triton.next_power_of_2(channels) == channels else 0, "B": ROW}


def cut(
    samples: int, positions: int, channels: int, programs: int, size: int = TILE
) -> tuple[dict[str, int], int, int]:
    """Return the size of a tile and its warps, the number of non-empty slices of positions, and the blocks of channels.

    About `programs` programs are launched; a tile has `size` elements at most, if they cover a sample's positions.
    """
    width = min(64, max(16, triton.next_power_of_2(channels)))
    height = max(TILE, min(size, width * triton.next_power_of_2(positions))) // width
    blocks = triton.cdiv(channels, width)
    slices = min(MOST_SLICES, triton.cdiv(programs, samples * blocks), max(1, positions // height))
    length = triton.cdiv(positions, slices)
    return {"P": height, "C": width, "num_warps": height * width // 1024}, triton.cdiv(positions, length), blocks
