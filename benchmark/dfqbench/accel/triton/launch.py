"""Registration of kernels for operators, and the sizes of their launches."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from dfqbench.accel import backend
from dfqbench.quant.operators import NAMESPACE

ROW = 1024
"""Elements of a program that takes them in a row."""
TILE = 4096
"""Elements of a tile of positions and channels."""
LARGE_TILE = 16384
"""The same where a whole sample's positions make one tile, which is then read once."""
FEWEST_PROGRAMS, MANY_PROGRAMS, MOST_SLICES = 128, 1024, 64
"""Programs of a kernel that sums over positions, by slices of positions: one for each multiprocessor of a large GPU
where slices must be put together by a further kernel, more of them where that is done anyway."""
MOST_ELEMENTS = 1 << 31
"""Kernels count in 32 bits."""
FEWEST_CHANNELS = 8
"""With fewer channels torch's kernels are faster."""
TYPES = (torch.float32, torch.bfloat16)
EXACT = {"enable_fp_fusion": False}
"""Products are rounded before they are added, as torch's are."""
KEYS = ("AutogradCUDA", "CUDA")
"""Dispatch keys of the forms: autograd's, so that a form has its own gradient, and the one below it."""

_LIBRARY: Any = torch.library.Library(NAMESPACE, "IMPL")  # type: ignore[no-untyped-call]

Form = Callable[..., Any]


def register(operator: Form, supports: Callable[..., bool]) -> Callable[[Form], Form]:
    """Register a function as the CUDA form of an operator.

    The operator's definition computes calls that the form does not support, and all calls while kernels are not in use.

    Args:
        operator: as made by `dfqbench.quant.operators.operator`.
        supports: whether the form takes these arguments.

    Returns:
        A decorator. It returns the registered function; the form is that function's attribute `__wrapped__`.
    """
    definition: Form = operator.__wrapped__  # type: ignore[attr-defined]

    def add(form: Form) -> Form:
        @wraps(form)
        def dispatch(*args: Any) -> Any:
            return form(*args) if backend.enabled() and supports(*args) else definition(*args)

        for key in KEYS:
            _LIBRARY.impl(definition.__name__, dispatch, key)
        return dispatch

    return add


def is_feature_map(x: Tensor) -> bool:
    """Check that x is (N, C, H, W), channels-last, float32 or bfloat16, with enough channels."""
    return (
        x.ndim == 4
        and x.dtype in TYPES
        and x.shape[1] >= FEWEST_CHANNELS
        and 0 < x.numel() < MOST_ELEMENTS
        and x.is_contiguous(memory_format=torch.channels_last)
    )


def has_no_gaps(x: Tensor) -> bool:
    """Check that x is float32 and fills its memory in some order."""
    return (
        x.dtype == torch.float32
        and 0 < x.numel() < MOST_ELEMENTS
        and (x.is_contiguous() or (x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)))
    )


def like(other: Tensor, x: Tensor) -> Tensor:
    """Return a map in the type of `x` and in channels-last order; a copy only where it has another."""
    return other.to(x.dtype).contiguous(memory_format=torch.channels_last)


def vector(values: Tensor) -> Tensor:
    """Return numbers of channels as kernels read them: float32, in order."""
    return values.to(torch.float32).contiguous()


def rows(count: int) -> tuple[int]:
    """Return the number of programs that take `count` elements in a row."""
    return (-(-count // ROW),)


def elements(channels: int) -> dict[str, int]:
    """Return the constants of a kernel that takes elements in a row (see `device.channel`)."""
    return {"POWER": channels if power(channels) == channels else 0, "B": ROW}


def cut(
    samples: int, positions: int, channels: int, programs: int, size: int = TILE
) -> tuple[dict[str, int], int, int]:
    """Return the size of a tile and its warps, the slices of the positions, and the blocks of the channels.

    No slice is empty.

    Args:
        samples: of the map.
        positions: of a sample.
        channels: of the map.
        programs: number of programs to aim at.
        size: of a tile at most, as far as it covers the positions of a sample.
    """
    width = min(64, max(16, power(channels)))
    height = max(TILE, min(size, width * power(positions))) // width
    blocks = -(-channels // width)
    slices = min(MOST_SLICES, -(-programs // (samples * blocks)), max(1, positions // height))
    length = -(-positions // slices)
    return {"P": height, "C": width, "num_warps": height * width // 1024}, -(-positions // length), blocks


def power(number: int) -> int:
    """Return the smallest power of two that is not below a positive number."""
    return 1 << max(0, number - 1).bit_length()
