"""The compiled passes in this process: the library for CPUs or the kernels for GPUs, and calls of their functions."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dfqbench.native.build import GPU

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
    "rounded_weight": (4, 2, 4),
    "units": (5, 1, 0),
    "affine": (7, 1, 1),
    "convolved": (4, 9, 0),
    "weight_gradient": (4, 8, 0),
    "fused_forward": (9, 8, 2),
    "fused_backward": (14, 9, 0),
    "strided": (3, 8, 0),
    "strided_data_gradient": (3, 8, 0),
    "strided_weight_gradient": (3, 8, 0),
    "upsampled_forward": (3, 5, 0),
    "upsampled_backward": (5, 5, 0),
}

Launch = Callable[[str, tuple[Tensor | None, ...], tuple[float, ...]], None]


@dataclass(frozen=True, slots=True)
class Passes:
    """What computes the passes.

    Attributes:
        device: type of the devices that its tensors are on.
        call: calls a function by name, with tensors, and sizes and numbers.
        saves_launches: whether it is what GPUs need: there are more functions for small tensors, and sums over samples
            are taken at once, since each operation costs a launch, however small.
    """

    device: str
    call: Launch
    saves_launches: bool = False


_passes: Passes | None = None


def use(path: Path | str | None) -> None:
    """Lets this process compute with what `build.built` named for it: nothing, given None or an empty path.

    Raises:
        OSError: the library cannot be loaded.
        ImportError: Triton cannot be imported.
    """
    global _passes  # noqa: PLW0603 - a process computes in one way
    if not path:
        _passes = None
    elif str(path) == GPU:
        from dfqbench.native import gpu

        _passes = Passes("cuda", gpu.call, saves_launches=True)
    else:
        _passes = Passes("cpu", _calls_of(_loaded(Path(path))))


def takes(device: str) -> bool:
    """Whether this process computes with compiled passes on devices of this type."""
    return _passes is not None and _passes.device == device


def saves_launches(device: str) -> bool:
    """Whether what is in use has more functions for small tensors, on devices of this type."""
    return _passes is not None and _passes.saves_launches and _passes.device == device


@contextmanager
def using(path: Path | str | None) -> Iterator[None]:
    """Within it, what is at `path` is in use, as of `use`."""
    with kept():
        use(path)
        yield


@contextmanager
def using_passes(passes: Passes) -> Iterator[None]:
    """Within it, these are in use."""
    global _passes  # noqa: PLW0603
    with kept():
        _passes = passes
        yield


@contextmanager
def kept() -> Iterator[None]:
    """Afterwards, what is in use now is in use again."""
    global _passes  # noqa: PLW0603
    before = _passes
    try:
        yield
    finally:
        _passes = before


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
    """Calls a function of what is in use.

    Args:
        name: with the type where there are two.
        tensors: nobody reads or writes beyond their ends: the caller has checked.
        numbers: sizes first.

    Raises:
        RuntimeError: nothing is in use.
    """
    if _passes is None:
        raise RuntimeError("no compiled passes are in use")
    _passes.call(name, tensors, numbers)


def _calls_of(library: ctypes.CDLL) -> Launch:
    def call(name: str, tensors: tuple[Tensor | None, ...], numbers: tuple[float, ...]) -> None:
        places = [None if tensor is None else tensor.data_ptr() for tensor in tensors]
        getattr(library, f"dfq_{name}")(*places, *numbers, torch.get_num_threads())

    return call
