"""The compiled passes as functions of tensors. The caller asks `fits` first; `use` loads the library."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FEWEST_CHANNELS = 8
"""Rows of fewer numbers do not fill the processor's registers; torch's operations are faster there."""
_POINTERS = {"moments": 3, "moments_backward": 4, "affine_backward": 7, "block_forward": 7, "block_backward": 9}
"""Functions for both types, with the number of tensors that each takes; three sizes follow."""
_BLOCKS = ("block_forward", "block_backward")
"""Functions that take the activation's ceiling, too."""
_TYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}

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
    pointer, size, threads = ctypes.c_void_p, ctypes.c_long, ctypes.c_int
    signatures: dict[str, list[Any]] = {
        f"dfq_{name}_{kind}": [pointer] * count + [size] * 3 + [ctypes.c_float] * (name in _BLOCKS) + [threads]
        for name, count in _POINTERS.items()
        for kind in _TYPES.values()
    }
    for name in ("dfq_widen_scaled", "dfq_narrow_scaled"):
        signatures[name] = [pointer] * 3 + [size] * 2 + [threads]
    signatures["dfq_round_to_grid"] = [pointer] * 3 + [size] + [pointer] * 2 + [ctypes.c_float] * 2 + [threads]
    for name, arguments in signatures.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, None
    return library


def fits(x: Tensor) -> bool:
    """Whether the library is in use and takes such a feature map: on the CPU, channels-last, float32 or bfloat16."""
    return (
        _library is not None
        and x.device.type == "cpu"
        and x.dtype in _TYPES
        and x.ndim == 4
        and x.shape[1] >= FEWEST_CHANNELS
        and x.numel() > 0
        and x.is_contiguous(memory_format=torch.channels_last)
    )


def fits_flat(x: Tensor) -> bool:
    """Whether the library is in use and takes such a tensor element by element: on the CPU, float32, without gaps."""
    return (
        _library is not None
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and x.numel() > 0
        and (x.is_contiguous() or (x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)))
    )


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance (N, C), float32, of a map that `fits`."""
    mean, var = _per_sample(x), _per_sample(x)
    _call("moments", x, x, mean, var)
    return mean, var


def moments_backward(x: Tensor, slope: Tensor, offset: Tensor) -> Tensor:
    """The map slope x + offset, with slope and offset float32 (N, C, 1, 1)."""
    _check(x, (), of_samples=(slope, offset))
    out = torch.empty_like(x)
    _call("moments_backward", x, x, _plain(slope), _plain(offset), out)
    return out


Affine = tuple[Tensor, Tensor]
"""Scale and shift, C numbers each."""


def block_forward(
    x: Tensor, affine: Affine, *, residual: Tensor | None = None, ceiling: float | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The output of scale x + shift, or with a ceiling of clip(scale x + shift + residual, 0, ceiling), and moments.

    Args:
        x: (N, C, H, W), fits.
        affine: scale and shift.
        residual: as `x`; with a ceiling only.
        ceiling: infinity for ReLU.

    Returns:
        The output in the type of `x`; mean and biased variance (N, C) of `x`, float32.
    """
    _check(x, (residual,), affine)
    residual = None if residual is None else _like(residual, x)
    out, mean, var = torch.empty_like(x), _per_sample(x), _per_sample(x)
    _call("block_forward", x, x, *map(_plain, affine), residual, out, mean, var, ceiling=_number(ceiling))
    return out, mean, var


def block_backward(
    x: Tensor,
    grad: Tensor,
    affine: Affine,
    to_moments: Affine,
    *,
    residual: Tensor | None = None,
    ceiling: float | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Gradients of `block_forward`.

    Args:
        x: as given to it.
        grad: gradient at the output.
        affine: as given to it.
        to_moments: slope and offset, N C numbers each; slope x + offset is the gradient of the moments.
        residual: as given to it.
        ceiling: as given to it.

    Returns:
        Gradients in `x` and in the residual.
    """
    _check(x, (residual, grad), affine, to_moments)
    to_x, to_residual = torch.empty_like(x), None if residual is None else torch.empty_like(x)
    residual = None if residual is None else _like(residual, x)
    tensors = (x, residual, _like(grad, x), *map(_plain, affine), *map(_plain, to_moments), to_x, to_residual)
    _call("block_backward", x, *tensors, ceiling=_number(ceiling))
    return to_x, to_residual


def affine_backward(x: Tensor, grad: Tensor, scale: Tensor, centre: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of scale x + shift.

    Args:
        x: (N, C, H, W), fits.
        grad: gradient at the output, of the same shape.
        scale: float32 (C,).
        centre: float32 (C,).

    Returns:
        scale grad, and float32 (C,): the sums of grad (x - centre) and of grad.
    """
    _check(x, (grad,), (scale, centre))
    out, to_scale, to_shift = torch.empty_like(x), _per_sample(x), _per_sample(x)
    _call("affine_backward", x, x, _like(grad, x), _plain(scale), _plain(centre), out, to_scale, to_shift)
    return out, to_scale.sum(0), to_shift.sum(0)


def scaled(x: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """The map factor x, from bfloat16 to float32 or back; `x` fits, factor is (1, C, 1, 1) or (1, 1, 1, 1)."""
    out = torch.empty_like(x, dtype=dtype)
    function = _present().dfq_widen_scaled if dtype == torch.float32 else _present().dfq_narrow_scaled
    channels = x.shape[1]
    factors = _plain(factor.expand(1, channels, 1, 1))
    function(_at(x), _at(factors), _at(out), x.numel() // channels, channels, torch.get_num_threads())
    return out


def round_to_grid(x: Tensor, affine: Affine, ends: tuple[float, float], codes: Tensor | None = None) -> Tensor:
    """The rounded map (clamp(round(scale x - shift), ends) + shift) / scale.

    Args:
        x: `fits_flat`.
        affine: scale and shift, 0-d.
        ends: lowest and highest integer before the shift.
        codes: bfloat16, in the shape and memory order of `x`; filled with the integers before the division.
    """
    out = torch.empty_like(x)
    scale, shift = map(_plain, affine)
    _present().dfq_round_to_grid(
        _at(x), _at(out), _at(codes), x.numel(), _at(scale), _at(shift), *ends, torch.get_num_threads()
    )
    return out


def _per_sample(x: Tensor) -> Tensor:
    return torch.empty(x.shape[:2])


def _like(other: Tensor, x: Tensor) -> Tensor:
    """Another map in the type and memory order of `x`; a copy only where it has another."""
    return other.to(x.dtype).contiguous(memory_format=torch.channels_last)


def _check(
    x: Tensor, maps: Iterable[Tensor | None], of_channels: Iterable[Tensor] = (), of_samples: Iterable[Tensor] = ()
) -> None:
    """Nothing is read beyond its end.

    Raises:
        ValueError: a map has not the shape of `x`, or there is not a number for each channel, or sample and channel.
    """
    samples, channels = x.shape[:2]
    fit = all(one is None or one.shape == x.shape for one in maps)
    fit &= all(one.numel() == channels for one in of_channels)
    fit &= all(one.numel() == samples * channels for one in of_samples)
    if not fit:
        raise ValueError(f"an operand does not fit a map of shape {tuple(x.shape)}")


def _plain(values: Tensor) -> Tensor:
    """Numbers of channels as they are read: float32 in order."""
    return values.to(torch.float32).contiguous()


def _number(ceiling: float | None) -> float:
    return -1.0 if ceiling is None else ceiling


def _call(name: str, x: Tensor, *tensors: Tensor | None, ceiling: float | None = None) -> None:
    samples, channels, height, width = x.shape
    function = getattr(_present(), f"dfq_{name}_{_TYPES[x.dtype]}")
    more = () if ceiling is None else (ceiling,)
    function(*map(_at, tensors), samples, height * width, channels, *more, torch.get_num_threads())


def _present() -> ctypes.CDLL:
    if _library is None:
        raise RuntimeError("no library is in use")
    return _library


def _at(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
