"""The compiled passes on GPUs: launches the Triton kernels under the names and arguments of the library's functions."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch
from torch import Tensor

from dfqbench.native.gpu import batch, convolutions, maps, rounding, woven

ROW = 1024
"""Elements of a program that takes them in a row."""
TILE = 4096
"""Elements of a tile of positions and channels."""
LARGE_TILE = 16384
"""Where a whole sample's positions make one tile, which is then read once."""
FEWEST_PROGRAMS, MANY_PROGRAMS, MOST_SLICES = 128, 1024, 64
"""Programs of a kernel that sums over positions, by slices of positions: one for each multiprocessor of a large GPU
where slices must be put together by a further kernel, more of them where that is done anyway."""
FEWEST_OF_PRODUCT = 16
"""Rows and columns of the smallest matrix that a product takes."""
MUCH_ROOM = 1 << 17
"""Bytes of shared memory; large GPUs have them."""
CONV_POSITIONS, CONV_SLICES = 128, 128
"""Positions of a convolution's program; slices of the positions for its gradient in the weight."""
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
    *given, mean, var = tensors

    def launch(grid: tuple[int, ...], parts: Any, slices: int, tile: dict[str, int]) -> None:
        maps.statistics[grid](*given, *parts, positions, slices, channels, ceiling, **flags, **tile, **EXACT)

    _by_slices(launch, (mean, var), (samples, positions, channels), programs=FEWEST_PROGRAMS, size=LARGE_TILE)


def _by_slices(launch: Any, whole: tuple[Any, Any], sizes: tuple[int, int, int], **wanted: int) -> None:
    """Takes moments slice by slice, and those of all positions (`whole`) from them.

    Args:
        launch: of the kernel that takes them.
        whole: means and variances.
        sizes: samples, positions and channels.
        wanted: as of `_cut`.
    """
    samples, positions, channels = sizes
    tile, slices, blocks = _cut(samples, positions, channels, **wanted)
    parts = whole if slices == 1 else [one.new_empty(samples, slices, channels) for one in whole]
    launch((samples, slices, blocks), parts, slices, tile)
    if slices > 1:
        maps.pooled[samples, -(-channels // 64)](*parts, *whole, positions, slices, channels, S=_power(slices), C=64)


def _moments_backward(tensors: Tensors, numbers: tuple[float, ...]) -> None:
    samples, positions, channels = _whole(numbers)
    count = samples * positions * channels
    maps.moments_backward[_rows(count)](
        *tensors, count, positions * channels, channels, **_elements(channels, positions), **EXACT
    )


def _block_backward(tensors: Tensors, numbers: tuple[float, ...]) -> None:
    x, residual, grad, *vectors, to_x, to_residual = tensors
    samples, positions, channels = _whole(numbers[:3])
    add, clip, capped = _flags(residual, numbers[3])
    count = samples * positions * channels
    maps.block_backward[_rows(count)](
        x, _or(residual, x), grad, *vectors, to_x, _or(to_residual, to_x), count, positions * channels, channels,
        numbers[3], ADD=add, CLIP=clip, CAPPED=capped, **_elements(channels, positions), **EXACT,
    )  # fmt: skip


def _affine_backward(tensors: tuple[Any, ...], numbers: tuple[float, ...]) -> None:
    x, residual, grad, scale, shift, centre, inverse, to_x, to_residual, *sums = tensors
    samples, positions, channels = _whole(numbers[:3])
    add, clip, capped = _flags(residual, numbers[3])
    tile, slices, blocks = _cut(samples, positions, channels, MANY_PROGRAMS)
    # A row for each sample and slice, added up to one.
    partial = [scale.new_empty(samples * slices, channels) for _ in sums]
    maps.affine_backward[samples, slices, blocks](
        x, _or(residual, x), grad, scale, shift, centre, to_x, _or(to_residual, to_x), *partial, positions, slices,
        channels, numbers[3], ADD=add, CLIP=clip, CAPPED=capped, **tile, **EXACT,
    )  # fmt: skip
    _totals(partial, inverse, sums, samples * slices, channels)


def _totals(partial: Any, factor: Any, sums: Any, rows: int, columns: int) -> None:
    """Adds up the rows of two tables; the first sums times a factor."""
    many = rows > MOST_SLICES
    maps.totals[(-(-columns // (16 if many else 64)),)](
        *partial, _or(factor, sums[0]), *sums, rows, columns, SCALED=factor is not None,
        P=min(1024, _power(rows)), C=16 if many else 64, num_warps=16 if many else 4,
    )  # fmt: skip


def _moments_gradient(tensors: Tensors, numbers: tuple[float, ...]) -> None:
    samples, positions, channels, by_mean, by_var = _whole(numbers)
    maps.moments_gradient[samples, -(-channels // 256)](
        *tensors, positions, by_mean, by_var, channels, C=min(256, _power(channels)), **EXACT
    )


def _affine(tensors: Tensors, numbers: tuple[float, ...]) -> None:
    channels = int(numbers[0])
    maps.affine[(-(-channels // 256),)](*tensors, channels, numbers[1], C=256, **EXACT)


def _units(tensors: Tensors, numbers: tuple[float, ...]) -> None:
    channels = int(numbers[0])
    rounding.units[(-(-channels // 256),)](*tensors, channels, C=256, **EXACT)


def _scaled(tensors: Tensors, numbers: tuple[float, ...]) -> None:
    rows, channels = _whole(numbers)
    rounding.scaled[_rows(rows * channels)](*tensors, rows * channels, channels, **_elements(channels))


def _convolved(tensors: tuple[Any, ...], numbers: tuple[float, ...]) -> None:
    x, weight, factor, out = tensors
    positions, height, width, channels, outer, by_outer, by_inner, by_tap, back = _whole(numbers)
    by_rows = channels < FEWEST_OF_PRODUCT
    convolutions.convolved[(-(-positions // CONV_POSITIONS),)](
        x, weight, _or(factor, x), out, positions, height, width, channels, outer, by_outer, by_inner, by_tap,
        BACK=bool(back), SCALED=factor is not None, ROWS=by_rows, P=CONV_POSITIONS,
        C=_of_product(3 * channels if by_rows else channels), OUT=_of_product(outer),
        num_stages=_stages(channels, outer, out.device),
    )  # fmt: skip


def _stages(channels: int, outer: int, device: torch.device) -> int:
    """Loads that are under way at once, as found best on an H200, where a program has the room for them."""
    if channels <= 32:
        return 1
    return 4 if outer > 16 and _room(device) >= MUCH_ROOM else 2


@cache
def _room(device: torch.device) -> int:
    """Bytes of shared memory that a program may take."""
    if device.type != "cuda":
        return 0
    return int(getattr(torch.cuda.get_device_properties(device), "shared_memory_per_block_optin", 0))


def _weight_gradient(tensors: tuple[Any, ...], numbers: tuple[float, ...]) -> None:
    x, grad, factor, out = tensors
    positions, height, width, channels, outer, by_outer, by_inner, by_tap = _whole(numbers)
    tile = 64
    length = -(-max(1, positions // CONV_SLICES) // tile) * tile
    slices = -(-positions // length)
    partial = out.new_empty(slices, 9 * channels * outer)
    convolutions.weight_sums[slices, 3](
        x, grad, partial, positions, height, width, length, channels, outer, P=tile, J=_of_product(3 * channels),
        OUT=_of_product(outer), num_stages=1 if channels > 32 else 3,
    )  # fmt: skip
    at_once = min(CONV_SLICES, _power(slices))
    numbers_at_once = 2048 // at_once
    convolutions.weight_total[(-(-9 * channels * outer // numbers_at_once),)](
        partial, _or(factor, x), out, slices, channels, outer, by_outer, by_inner, by_tap, SCALED=factor is not None,
        S=at_once, B=numbers_at_once,
    )  # fmt: skip


def _batch_moments(tensors: Tensors, numbers: tuple[float, ...]) -> None:
    samples, channels = _whole(numbers)
    batch.batch_moments[(-(-channels // 16),)](*tensors, samples, channels, P=256, C=16, **EXACT)


def _batch_moments_backward(tensors: Tensors, numbers: tuple[float, ...]) -> None:
    samples, channels = _whole(numbers)
    batch.batch_moments_backward[_rows(samples * channels)](*tensors, samples, channels, B=ROW, **EXACT)


def _batch_affine(tensors: Tensors, numbers: tuple[float, ...]) -> None:
    samples, channels, rows = _whole(numbers[:3])
    batch.batch_affine[(-(-samples * channels // 256),)](
        *tensors, samples, channels, numbers[3], ROWS=rows > 1, B=256, **EXACT
    )


def _batch_affine_backward(tensors: Tensors, numbers: tuple[float, ...]) -> None:
    samples, channels, rows, count = _whole(numbers)
    batch.batch_affine_backward[(-(-channels // 16),)](
        *tensors, samples, channels, float(count), ROWS=rows > 1, P=256, C=16, **EXACT
    )


def _round_to_grid(tensors: Tensors, numbers: tuple[float, ...]) -> None:
    x, out, codes, scale, shift = tensors
    count = int(numbers[0])
    rounding.round_to_grid[_rows(count)](
        x, out, _or(codes, out), scale, shift, count, *map(float, numbers[1:]), CODES=codes is not None, B=ROW, **EXACT
    )


def _rounded_block(tensors: Tensors, numbers: tuple[float, ...]) -> None:
    x, scale, shift, residual, out, codes, *grid = tensors
    rows, channels = _whole(numbers[:2])
    rounding.rounded_block[_rows(rows * channels)](
        x, scale, shift, _or(residual, x), out, _or(codes, out), *grid, rows * channels, channels,
        *map(float, numbers[2:]), ADD=residual is not None, CODES=codes is not None, **_elements(channels), **EXACT,
    )  # fmt: skip


def _rounded_weight(tensors: Tensors, numbers: tuple[float, ...]) -> None:
    rows, count = _whole(numbers[:2])
    wide = min(TILE, max(32, _power(count)))
    rounding.rounded_weight[(rows,)](*tensors, count, *map(float, numbers[2:]), B=wide, **EXACT)


def _woven_moments(tensors: Tensors, numbers: tuple[float, ...]) -> None:
    phases, mean, var = tensors
    samples, height, width, channels = _whole(numbers)

    def launch(grid: tuple[int, ...], parts: Any, slices: int, tile: dict[str, int]) -> None:
        woven.woven_statistics[grid](phases, *parts, height, width, slices, channels, **tile, **EXACT)

    _by_slices(launch, (mean, var), (samples, 4 * height * width, channels), programs=MANY_PROGRAMS)


def _woven_forward(tensors: Tensors, numbers: tuple[float, ...]) -> None:
    samples, height, width, channels = _whole(numbers[:4])
    count = samples * 4 * height * width * channels
    woven.woven_forward[_rows(count)](*tensors, count, height, width, channels, numbers[4], B=ROW, **EXACT)


def _woven_sums(tensors: tuple[Any, ...], numbers: tuple[float, ...]) -> None:
    *given, to_scale, to_shift = tensors
    samples, height, width, channels = _whole(numbers[:4])
    tile, slices, blocks = _cut(samples, 4 * height * width, channels, MANY_PROGRAMS)
    sums = to_scale, to_shift
    partial = sums if slices == 1 else [one.new_empty(slices, *one.shape) for one in sums]
    woven.woven_sums[samples, slices, blocks](
        *given, *partial, height, width, slices, channels, numbers[4], **tile, **EXACT
    )
    if slices > 1:
        _totals(partial, None, sums, slices, samples * channels)


def _woven_backward(tensors: Tensors, numbers: tuple[float, ...]) -> None:
    samples, height, width, channels = _whole(numbers[:4])
    count = samples * (height + 1) * (width + 1) * 4 * channels
    woven.woven_backward[_rows(count)](*tensors, count, height, width, channels, numbers[4], B=ROW, **EXACT)


_LAUNCHES = {
    "moments": _moments,
    "moments_backward": _moments_backward,
    "moments_gradient": _moments_gradient,
    "block_forward": _block_forward,
    "block_backward": _block_backward,
    "affine_backward": _affine_backward,
    "affine": _affine,
    "units": _units,
    "convolved": _convolved,
    "weight_gradient": _weight_gradient,
    "batch_moments": _batch_moments,
    "batch_moments_backward": _batch_moments_backward,
    "batch_affine": _batch_affine,
    "batch_affine_backward": _batch_affine_backward,
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


def _cut(
    samples: int, positions: int, channels: int, programs: int, size: int = TILE
) -> tuple[dict[str, int], int, int]:
    """Sizes of a tile and warps for it, slices of the positions, and blocks of the channels.

    No slice is empty.

    Args:
        samples: of the map.
        positions: of a sample.
        channels: of the map.
        programs: that are wanted.
        size: of a tile at most, as far as it covers the positions of a sample.
    """
    width = min(64, max(16, _power(channels)))
    height = max(TILE, min(size, width * _power(positions))) // width
    blocks = -(-channels // width)
    wanted = min(MOST_SLICES, -(-programs // (samples * blocks)), max(1, positions // height))
    length = -(-positions // wanted)
    return {"P": height, "C": width, "num_warps": height * width // 1024}, -(-positions // length), blocks


def _power(number: int) -> int:
    return 1 << max(0, number - 1).bit_length()


def _of_product(number: int) -> int:
    return max(FEWEST_OF_PRODUCT, _power(number))
