"""The compiled passes on GPUs: launches the Triton kernels under the names and arguments of the library's functions."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from dfqbench.native import gpu_kernels as kernels

ROW = 1024
"""Elements of a program that takes them in a row."""
TILE = 4096
"""Elements of a tile of positions and channels."""
FEWEST_PROGRAMS, MOST_SLICES = 128, 64
"""Programs of a kernel that sums over positions: one for each multiprocessor of a large GPU, by slices of positions."""
EXACT = {"enable_fp_fusion": False}
"""Products are rounded before they are added, as torch's are."""

Tensors = tuple[Tensor | None, ...]


def call(name: str, tensors: Tensors, numbers: tuple[float, ...]) -> None:
    """Launches the kernel that computes what the library's function of this name does, on the current stream."""
    _LAUNCHES[name.removesuffix("_float32").removesuffix("_bfloat16")](tensors, numbers)


def _moments(tensors: Tensors, numbers: tuple[float, ...]) -> None:
    x, mean, var = tensors
    _statistics((x, x, x, x, x, mean, var), numbers, APPLY=False, ADD=False, CLIP=False)


def _block_forward(tensors: Tensors, numbers: tuple[float, ...]) -> None:
    x, scale, shift, residual, out, mean, var = tensors
    add, clip, _ = _flags(residual, numbers[3])
    _statistics((x, scale, shift, _or(residual, x), out, mean, var), numbers, APPLY=True, ADD=add, CLIP=clip)


def _statistics(tensors: tuple[Any, ...], numbers: tuple[float, ...], **flags: bool) -> None:
    samples, positions, channels = _whole(numbers[:3])
    ceiling = numbers[3] if len(numbers) > 3 else 0.0
    *maps, mean, var = tensors

    def launch(grid: tuple[int, ...], parts: Any, slices: int, tile: dict[str, int]) -> None:
        kernels.statistics[grid](*maps, *parts, positions, slices, channels, ceiling, **flags, **tile, **EXACT)

    _by_slices(launch, (mean, var), samples, positions, channels)


def _by_slices(launch: Any, whole: tuple[Any, Any], samples: int, positions: int, channels: int) -> None:
    """Takes moments slice by slice, and those of all positions (`whole`) from them."""
    tile, slices, blocks = _cut(samples, positions, channels)
    parts = whole if slices == 1 else [one.new_empty(samples, slices, channels) for one in whole]
    launch((samples, slices, blocks), parts, slices, tile)
    if slices > 1:
        kernels.pooled[samples, -(-channels // 64)](*parts, *whole, positions, slices, channels, S=_power(slices), C=64)


def _moments_backward(tensors: Tensors, numbers: tuple[float, ...]) -> None:
    samples, positions, channels = _whole(numbers)
    count = samples * positions * channels
    kernels.moments_backward[_rows(count)](
        *tensors, count, positions * channels, channels, **_elements(channels, positions), **EXACT
    )


def _block_backward(tensors: Tensors, numbers: tuple[float, ...]) -> None:
    x, residual, grad, *vectors, to_x, to_residual = tensors
    samples, positions, channels = _whole(numbers[:3])
    add, clip, capped = _flags(residual, numbers[3])
    count = samples * positions * channels
    kernels.block_backward[_rows(count)](
        x, _or(residual, x), grad, *vectors, to_x, _or(to_residual, to_x), count, positions * channels, channels,
        numbers[3], ADD=add, CLIP=clip, CAPPED=capped, **_elements(channels, positions), **EXACT,
    )  # fmt: skip


def _affine_backward(tensors: tuple[Any, ...], numbers: tuple[float, ...]) -> None:
    x, residual, grad, scale, shift, centre, to_x, to_residual, *sums = tensors
    samples, positions, channels = _whole(numbers[:3])
    add, clip, capped = _flags(residual, numbers[3])
    tile, slices, blocks = _cut(samples, positions, channels)
    # A row for each sample and slice, added up to one.
    partial = [scale.new_empty(samples * slices, channels) for _ in sums]
    kernels.affine_backward[samples, slices, blocks](
        x, _or(residual, x), grad, scale, shift, centre, to_x, _or(to_residual, to_x), *partial, positions, slices,
        channels, numbers[3], ADD=add, CLIP=clip, CAPPED=capped, **tile, **EXACT,
    )  # fmt: skip
    kernels.totals[(-(-channels // 16),)](*partial, *sums, samples * slices, channels, P=256, C=16)


def _moments_gradient(tensors: Tensors, numbers: tuple[float, ...]) -> None:
    samples, positions, channels, by_mean, by_var = _whole(numbers)
    kernels.moments_gradient[samples, -(-channels // 256)](
        *tensors, positions, by_mean, by_var, channels, C=min(256, _power(channels)), **EXACT
    )


def _affine(tensors: Tensors, numbers: tuple[float, ...]) -> None:
    channels = int(numbers[0])
    kernels.affine[(-(-channels // 256),)](*tensors, channels, numbers[1], C=256, **EXACT)


def _units(tensors: Tensors, numbers: tuple[float, ...]) -> None:
    channels = int(numbers[0])
    kernels.units[(-(-channels // 256),)](*tensors, channels, C=256, **EXACT)


def _scaled(tensors: Tensors, numbers: tuple[float, ...]) -> None:
    rows, channels = _whole(numbers)
    kernels.scaled[_rows(rows * channels)](*tensors, rows * channels, channels, **_elements(channels))


def _round_to_grid(tensors: Tensors, numbers: tuple[float, ...]) -> None:
    x, out, codes, scale, shift = tensors
    count = int(numbers[0])
    kernels.round_to_grid[_rows(count)](
        x, out, _or(codes, out), scale, shift, count, *map(float, numbers[1:]), CODES=codes is not None, B=ROW, **EXACT
    )


def _rounded_block(tensors: Tensors, numbers: tuple[float, ...]) -> None:
    x, scale, shift, residual, out, codes, *grid = tensors
    rows, channels = _whole(numbers[:2])
    kernels.rounded_block[_rows(rows * channels)](
        x, scale, shift, _or(residual, x), out, _or(codes, out), *grid, rows * channels, channels,
        *map(float, numbers[2:]), ADD=residual is not None, CODES=codes is not None, **_elements(channels), **EXACT,
    )  # fmt: skip


def _rounded_weight(tensors: Tensors, numbers: tuple[float, ...]) -> None:
    rows, count = _whole(numbers[:2])
    wide = min(TILE, max(32, _power(count)))
    kernels.rounded_weight[(rows,)](*tensors, count, *map(float, numbers[2:]), B=wide, **EXACT)


def _woven_moments(tensors: Tensors, numbers: tuple[float, ...]) -> None:
    phases, mean, var = tensors
    samples, height, width, channels = _whole(numbers)

    def launch(grid: tuple[int, ...], parts: Any, slices: int, tile: dict[str, int]) -> None:
        kernels.woven_statistics[grid](phases, *parts, height, width, slices, channels, **tile, **EXACT)

    _by_slices(launch, (mean, var), samples, 4 * height * width, channels)


def _woven_forward(tensors: Tensors, numbers: tuple[float, ...]) -> None:
    samples, height, width, channels = _whole(numbers[:4])
    count = samples * 4 * height * width * channels
    kernels.woven_forward[_rows(count)](*tensors, count, height, width, channels, numbers[4], B=ROW, **EXACT)


def _woven_sums(tensors: Tensors, numbers: tuple[float, ...]) -> None:
    *maps, to_scale, to_shift = tensors
    samples, height, width, channels = _whole(numbers[:4])
    tile, slices, blocks = _cut(samples, 4 * height * width, channels)
    partial = _sums([to_scale, to_shift], slices)
    kernels.woven_sums[samples, slices, blocks](
        *maps, *partial, height, width, slices, channels, numbers[4], **tile, **EXACT
    )
    _add_up(partial, [to_scale, to_shift])


def _woven_backward(tensors: Tensors, numbers: tuple[float, ...]) -> None:
    samples, height, width, channels = _whole(numbers[:4])
    count = samples * (height + 1) * (width + 1) * 4 * channels
    kernels.woven_backward[_rows(count)](*tensors, count, height, width, channels, numbers[4], B=ROW, **EXACT)


_LAUNCHES = {
    "moments": _moments,
    "moments_backward": _moments_backward,
    "moments_gradient": _moments_gradient,
    "block_forward": _block_forward,
    "block_backward": _block_backward,
    "affine_backward": _affine_backward,
    "affine": _affine,
    "units": _units,
    "widen_scaled": _scaled,
    "narrow_scaled": _scaled,
    "round_to_grid": _round_to_grid,
    "rounded_block": _rounded_block,
    "rounded_weight": _rounded_weight,
    "woven_moments": _woven_moments,
    "woven_forward": _woven_forward,
    "woven_sums": _woven_sums,
    "woven_backward": _woven_backward,
}


def _whole(numbers: tuple[float, ...]) -> tuple[int, ...]:
    return tuple(map(int, numbers))


def _or(tensor: Tensor | None, other: Tensor | None) -> Tensor | None:
    """A tensor for a place that the kernel does not look at where there is none."""
    return other if tensor is None else tensor


def _flags(residual: Tensor | None, ceiling: float) -> tuple[bool, bool, bool]:
    """Whether a residual is added, whether the sum is clipped, and whether from above, too."""
    return residual is not None, ceiling >= 0, ceiling >= 0 and math.isfinite(ceiling)


def _elements(channels: int, positions: int | None = None) -> dict[str, Any]:
    """What a kernel that takes elements in a row is told of their channels and, where it asks, of their samples."""
    power = channels if _power(channels) == channels else 0
    of_samples = {} if positions is None else {"WHOLE": positions * channels % ROW == 0}
    return {"POWER": power, "B": ROW, **of_samples}


def _rows(count: int) -> tuple[int]:
    return (-(-count // ROW),)


def _cut(samples: int, positions: int, channels: int) -> tuple[dict[str, int], int, int]:
    """Sizes of a tile, slices of the positions, and blocks of the channels.

    No slice is empty.
    """
    width = min(64, max(16, _power(channels)))
    height = TILE // width
    blocks = -(-channels // width)
    wanted = min(MOST_SLICES, -(-FEWEST_PROGRAMS // (samples * blocks)), max(1, positions // height))
    length = -(-positions // wanted)
    return {"P": height, "C": width}, -(-positions // length), blocks


def _power(number: int) -> int:
    return 1 << max(0, number - 1).bit_length()


def _sums(sums: list[Any], slices: int) -> list[Tensor]:
    return sums if slices == 1 else [one.new_empty(slices, *one.shape) for one in sums]


def _add_up(partial: list[Tensor], sums: list[Any]) -> None:
    for parts, total in zip(partial, sums, strict=True):
        if parts is not total:
            torch.sum(parts, 0, out=total)
