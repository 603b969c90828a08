"""The library in this process: which one is loaded, and calls of its functions."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

TYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
"""Types of maps, as the library's functions are named after them."""
_OF_BOTH_TYPES = {
    "moments": (3, 3, 0),
    "moments_backward": (4, 3, 0),
    "block_forward": (7, 3, 1),
    "block_backward": (9, 3, 1),
    "affine_backward": (10, 3, 1),
    "woven_moments": (3, 4, 0),
    "woven_forward": (4, 4, 1),
    "woven_sums": (7, 4, 1),
    "woven_backward": (7, 4, 1),
}
"""How many tensors, sizes and numbers a function takes, in this order; the number of threads follows."""
_OF_ONE_TYPE = {
    "widen_scaled": (3, 2, 0),
    "narrow_scaled": (3, 2, 0),
    "round_to_grid": (5, 1, 2),
    "rounded_block": (8, 2, 2),
}

_library: ctypes.CDLL | None = None


def use(path: Path | str | None) -> None:
    """Loads the library that `build.built` named for this process, or, given None or an empty path, none.

    Raises:
        OSError: the file cannot be loaded.
    """
    global _library  # noqa: PLW0603 - a process computes in one way
    _library = _loaded(Path(path)) if path else None


def in_use() -> bool:
    """Whether this process computes with the library."""
    return _library is not None


@contextmanager
def using(path: Path | str | None) -> Iterator[None]:
    """Within it, the library at `path` is in use, or none."""
    with kept():
        use(path)
        yield


@contextmanager
def kept() -> Iterator[None]:
    """Afterwards, the library that is in use now is in use again."""
    global _library  # noqa: PLW0603
    before = _library
    try:
        yield
    finally:
        _library = before


def _loaded(path: Path) -> ctypes.CDLL:
    # torch is loaded, and with it the OpenMP runtime whose threads both share.
    library = ctypes.CDLL(str(path))
    counts = {f"{name}_{kind}": taken for name, taken in _OF_BOTH_TYPES.items() for kind in TYPES.values()}
    for name, (tensors, sizes, numbers) in (counts | _OF_ONE_TYPE).items():
        function = getattr(library, f"dfq_{name}")
        arguments: list[Any] = [ctypes.c_void_p] * tensors + [ctypes.c_long] * sizes + [ctypes.c_float] * numbers
        function.argtypes, function.restype = [*arguments, ctypes.c_int], None
    return library


def call(name: str, tensors: tuple[Tensor | None, ...], *numbers: float) -> None:
    """Calls a function of the library.

    Args:
        name: with the type where there are two.
        tensors: nobody reads or writes beyond their ends: the caller has checked.
        numbers: sizes first.

    Raises:
        RuntimeError: no library is in use.
    """
    if _library is None:
        raise RuntimeError("no library is in use")
    places = [None if tensor is None else tensor.data_ptr() for tensor in tensors]
    getattr(_library, f"dfq_{name}")(*places, *numbers, torch.get_num_threads())
