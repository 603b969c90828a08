"""The compiled passes as functions of tensors. The caller asks `fits` first."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from dfqbench.native import binding

FEWEST_CHANNELS = 8
"""Rows of fewer numbers do not fill the processor's registers; torch's operations are faster there."""

MOST_ELEMENTS = 1 << 31
"""GPUs count in 32 bits."""

Affine = tuple[Tensor, Tensor]
"""Scale and shift."""
Grid = tuple[Tensor, Tensor, float, float]
"""Scale S and shift Z, 0-d, of a grid; lowest and highest integer before the shift."""


def fits(x: Tensor) -> bool:
    """Whether passes are in use that take such a feature map: on their device, channels-last, float32 or bfloat16."""
    return (
        binding.takes(x.device.type)
        and x.dtype in binding.TYPES
        and x.ndim == 4
        and x.shape[1] >= FEWEST_CHANNELS
        and 0 < x.numel() < MOST_ELEMENTS
        and x.is_contiguous(memory_format=torch.channels_last)
    )


def fits_flat(x: Tensor) -> bool:
    """Whether passes are in use that take such a tensor element by element: on their device, float32, without gaps."""
    return (
        binding.takes(x.device.type)
        and x.dtype == torch.float32
        and 0 < x.numel() < MOST_ELEMENTS
        and (x.is_contiguous() or (x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)))
    )


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance (N, C), float32, of a map that `fits`."""
    mean, var = for_samples(x, x.shape[1]), for_samples(x, x.shape[1])
    _call("moments", x, x, mean, var)
    return mean, var


def moments_backward(x: Tensor, slope: Tensor, offset: Tensor) -> Tensor:
    """The map slope x + offset, with slope and offset float32 (N, C, 1, 1)."""
    check(x, (), of_samples=(slope, offset))
    out = torch.empty_like(x)
    _call("moments_backward", x, x, plain(slope), plain(offset), out)
    return out


def fits_moments(mean: Tensor, to_mean: Tensor, to_var: Tensor) -> bool:
    """Whether `moments_gradient` takes these: (N, C), float32, where it saves launches."""
    return binding.saves_launches(mean.device.type) and all(
        part.ndim == 2 and part.shape == mean.shape and part.dtype == torch.float32 and part.stride(1) == 1
        for part in (mean.contiguous(), to_mean, to_var)
    )


def moments_gradient(mean: Tensor, to_mean: Tensor, to_var: Tensor, positions: int) -> tuple[Tensor, Tensor]:
    """Slope and offset (N, C) of the gradient of moments in their map (`synth.moments.moments_gradient`).

    Args:
        mean: (N, C).
        to_mean: gradient at the means, (N, C); rows may lie apart.
        to_var: gradient at the variances, likewise.
        positions: spatial positions of the map.
    """
    mean = mean.contiguous()
    slope, offset = torch.empty_like(mean), torch.empty_like(mean)
    tensors = (mean, to_mean, to_var, slope, offset)
    samples, channels = mean.shape
    binding.call("moments_gradient", tensors, samples, positions, channels, to_mean.stride(0), to_var.stride(0))
    return slope, offset


def block_forward(
    x: Tensor, affine: Affine, *, residual: Tensor | None = None, ceiling: float | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The output of scale x + shift, or with a ceiling of clip(scale x + shift + residual, 0, ceiling), and moments.

    Args:
        x: (N, C, H, W), fits.
        affine: scale and shift (C,).
        residual: as `x`; with a ceiling only.
        ceiling: infinity for ReLU.

    Returns:
        The output in the type of `x`; mean and biased variance (N, C) of `x`, float32.
    """
    check(x, (residual,), affine)
    _check_clips(residual, ceiling)
    residual = None if residual is None else like(residual, x)
    out, mean, var = torch.empty_like(x), for_samples(x, x.shape[1]), for_samples(x, x.shape[1])
    _call("block_forward", x, x, *map(plain, affine), residual, out, mean, var, ceiling=_number(ceiling))
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
    check(x, (residual, grad), affine, to_moments)
    _check_clips(residual, ceiling)
    to_x, to_residual = torch.empty_like(x), None if residual is None else torch.empty_like(x)
    residual = None if residual is None else like(residual, x)
    tensors = (x, residual, like(grad, x), *map(plain, affine), *map(plain, to_moments), to_x, to_residual)
    _call("block_backward", x, *tensors, ceiling=_number(ceiling))
    return to_x, to_residual


def affine_backward(
    x: Tensor,
    grad: Tensor,
    affine: Affine,
    centre: Tensor,
    *,
    inverse: Tensor,
    residual: Tensor | None = None,
    ceiling: float | None = None,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """Gradients of scale x + shift, or with a ceiling of clip(scale x + shift + residual, 0, ceiling).

    Args:
        x: (N, C, H, W), fits.
        grad: gradient at the output, of the same shape.
        affine: scale and shift (C,).
        centre: float32 (C,).
        inverse: float32 (C,).
        residual: as `x`; with a ceiling only.
        ceiling: infinity for ReLU.

    Returns:
        Gradients in `x` and in the residual; float32 (C,): with g the gradient before clipping, the sums of
        g (x - centre), times `inverse`, and of g.
    """
    check(x, (residual, grad), (*affine, centre, inverse))
    _check_clips(residual, ceiling)
    to_x, to_residual = torch.empty_like(x), None if residual is None else torch.empty_like(x)
    at_once = binding.saves_launches(x.device.type)
    rows = 1 if at_once else x.shape[0]
    to_scale, to_shift = (x.new_empty(rows, x.shape[1], dtype=torch.float32) for _ in range(2))
    residual = None if residual is None else like(residual, x)
    vectors = map(plain, (*affine, centre, *([inverse] if at_once else ())))
    tensors = (x, residual, like(grad, x), *vectors, to_x, to_residual, to_scale, to_shift)
    _call("affine_backward", x, *tensors, ceiling=_number(ceiling))
    sums = (to_scale[0], to_shift[0]) if at_once else (to_scale.sum(0) * inverse, to_shift.sum(0))
    return to_x, to_residual, *sums


def fits_affine(*vectors: Tensor) -> bool:
    """Whether passes are in use, and `affine` and `units` take these: float32, in order."""
    return all(binding.takes(one.device.type) and one.dtype == torch.float32 and one.is_contiguous() for one in vectors)


def affine(layer: tuple[Tensor, Tensor, Tensor, Tensor], eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Scale and shift (C,) that a BatchNorm layer in eval mode amounts to, and one over its running deviation.

    Args:
        layer: weight, bias, running mean and variance (C,), `fits_affine`.
        eps: added to the variance.
    """
    scale, shift, inverse = (torch.empty_like(layer[0]) for _ in range(3))
    binding.call("affine", (*layer, scale, shift, inverse), len(scale), eps)
    return scale, shift, inverse


def units(x_scale: Tensor, w_scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of a convolution on integers, (out,) each: 1 / (S_x S_w), that times S_x, and S_w / S_x.

    Args:
        x_scale: S_x, 0-d, `fits_affine`.
        w_scale: S_w (out, ...), likewise.
    """
    unit, inner, ratio = (w_scale.new_empty(w_scale.numel()) for _ in range(3))
    binding.call("units", (x_scale, w_scale, unit, inner, ratio), w_scale.numel())
    return unit, inner, ratio


def scaled(x: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """The map factor x, from bfloat16 to float32 or back; `x` fits, factor is (1, C, 1, 1) or (1, 1, 1, 1)."""
    out = torch.empty_like(x, dtype=dtype)
    channels = x.shape[1]
    name = "widen_scaled" if dtype == torch.float32 else "narrow_scaled"
    binding.call(name, (x, plain(factor.expand(1, channels, 1, 1)), out), x.numel() // channels, channels)
    return out


def round_to_grid(x: Tensor, grid: Grid, codes: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    """The rounded tensor (clamp(round(S x - Z), ends) + Z) / S.

    Args:
        x: `fits_flat`.
        grid: S, Z and the ends.
        codes: bfloat16, in the shape and memory order of `x`; filled with the integers before the division.
        out: where the result goes, `x` itself for one; None: new memory.
    """
    out = torch.empty_like(x) if out is None else out
    scale, shift, *ends = grid
    binding.call("round_to_grid", (x, out, codes, plain(scale), plain(shift)), x.numel(), *ends)
    return out


def fits_weight(weight: Tensor) -> bool:
    """Whether passes are in use that round weights, and take this one: (out, ...) with each channel in a row."""
    return weight.ndim > 1 and fits_flat(weight)


def rounded_weight(weight: Tensor, bits: int, smallest: float) -> tuple[Tensor, Tensor, Tensor]:
    """A weight on the grids of its channels' live ranges (`quant.fake.integral_shift`).

    Args:
        weight: (out, ...), `fits_weight`.
        bits: k.
        smallest: span of the narrowest range.

    Returns:
        The rounded weight; its integers, bfloat16; scales S (out,).
    """
    out, codes = torch.empty_like(weight), torch.empty_like(weight, dtype=torch.bfloat16)
    rows, half = weight.shape[0], 2 ** (bits - 1)
    scale = weight.new_empty(rows)
    binding.call(
        "rounded_weight", (weight, out, codes, scale), rows, weight.numel() // rows, -half, half - 1, half, smallest
    )
    return out, codes, scale


def rounded_block(
    x: Tensor, affine: Affine, grid: Grid, *, residual: Tensor | None = None, codes: Tensor | None = None
) -> Tensor:
    """A block's sum, scale x + shift + residual, on a grid whose lowest point is 0, so that it clips as ReLU does.

    Args:
        x: (N, C, H, W), fits, float32.
        affine: scale and shift (C,).
        grid: S, Z and the ends.
        residual: as `x`.
        codes: bfloat16, in the shape and memory order of `x`; filled with the grid's integers.
    """
    check(x, (residual, codes), affine)
    out, channels = torch.empty_like(x), x.shape[1]
    scale, shift, *ends = grid
    residual = None if residual is None else like(residual, x)
    tensors = (x, *map(plain, affine), residual, out, codes, plain(scale), plain(shift))
    binding.call("rounded_block", tensors, x.numel() // channels, channels, *ends)
    return out


def for_samples(x: Tensor, channels: int) -> Tensor:
    """Room for a number for each sample and channel."""
    return x.new_empty(x.shape[0], channels, dtype=torch.float32)


def like(other: Tensor, x: Tensor) -> Tensor:
    """Another map in the type and memory order of `x`; a copy only where it has another."""
    return other.resolve_neg().to(x.dtype).contiguous(memory_format=torch.channels_last)


def check(
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


def _check_clips(residual: Tensor | None, ceiling: float | None) -> None:
    """Raises ValueError where a residual would be added and nothing clipped, which no function of the library does."""
    if residual is not None and ceiling is None:
        raise ValueError("a residual needs a ceiling")


def plain(values: Tensor) -> Tensor:
    """Numbers of channels as they are read: float32 in order."""
    return values.to(torch.float32).contiguous()


def _number(ceiling: float | None) -> float:
    return -1.0 if ceiling is None else ceiling


def _call(name: str, x: Tensor, *tensors: Tensor | None, ceiling: float | None = None) -> None:
    samples, channels, height, width = x.shape
    more = () if ceiling is None else (ceiling,)
    binding.call(f"{name}_{binding.TYPES[x.dtype]}", tensors, samples, height * width, channels, *more)
