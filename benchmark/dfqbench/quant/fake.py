"""Fake quantization: rounding to a grid in float, as pure functions of tensor, range and bits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dfqbench.api.numerics import chunks
from dfqbench.native import passes
from dfqbench.native.operands import unobserved
from dfqbench.quant.grid_conv import on_grid

SMALLEST_SPAN = 1e-8
"""Ranges narrower than this are widened to it, as in the ZeroQ family's code (methods.md 0.1)."""


def integral_shift(low: Tensor, high: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Scale S and shift Z of the ZeroQ family's asymmetric grid.

    S = N / max(M - m, 1e-8) and Z = round(S m) + 2^(k-1), with N = 2^k - 1 (methods.md 0.1, released code).

    Args:
        low: m, any shape.
        high: M, same shape.
        bits: k.

    Returns:
        S and Z, in the shape of `low`.
    """
    scale = (2**bits - 1) / (high - low).clamp_min(SMALLEST_SPAN)
    return scale, torch.round(scale * low) + 2 ** (bits - 1)


ShiftedGrid = tuple[Tensor, Tensor, int]
"""Scale S, shift Z and bits k."""


class _RoundToShiftedGrid(torch.autograd.Function):
    """x -> (clamp(round(S x - Z), -2^(k-1), 2^(k-1) - 1) + Z) / S, with the identity as gradient.

    With `rectify` the gradient is that of ReLU before it; the value is so by itself where the grid begins at 0.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, grid: ShiftedGrid, rectify: bool) -> Tensor:
        scale, shift, bits = grid
        _remember(ctx, x, rectify)
        if scale.ndim or not x.ndim:
            return _shifted_codes(x, scale, shift, bits).div_(scale)
        if passes.fits_flat(x):
            return passes.round_to_grid(x, (scale, shift, *grid_ends(bits)))
        out = torch.empty_like(x)
        for part in chunks(x):
            # The rounding's own passes stay in cache; one pass reads x and writes the result.
            torch.div(_shifted_codes(x[part], scale, shift, bits), scale, out=out[part])
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        # The released quantizers let the gradient of clamped elements pass too.
        return _passed(ctx, grads[0]), None, None


class _RoundAndKeepCodes(torch.autograd.Function):
    """As `_RoundToShiftedGrid` with one grid for the tensor; gives its integers in bfloat16, too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, grid: ShiftedGrid, rectify: bool) -> tuple[Tensor, Tensor]:
        scale, shift, bits = grid
        _remember(ctx, x, rectify)
        codes = torch.empty_like(x, dtype=torch.bfloat16)
        ctx.mark_non_differentiable(codes)
        if passes.fits_flat(x):
            return passes.round_to_grid(x, (scale, shift, *grid_ends(bits)), codes), codes
        out = torch.empty_like(x)
        for part in chunks(x):
            some = _shifted_codes(x[part], scale, shift, bits)
            codes[part] = some
            torch.div(some, scale, out=out[part])
        return out, codes

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return _passed(ctx, grads[0]), None, None


def _remember(ctx: Any, x: Tensor, rectify: bool) -> None:
    ctx.rectify = rectify
    if rectify:
        ctx.save_for_backward(x)


def _passed(ctx: Any, grad: Tensor) -> Tensor:
    if not ctx.rectify:
        return grad
    through: Tensor = torch.ops.aten.threshold_backward(grad, ctx.saved_tensors[0], 0)
    return through


def _shifted_codes(x: Tensor, scale: Tensor, shift: Tensor, bits: int) -> Tensor:
    return (x * scale).sub_(shift).round_().clamp_(*grid_ends(bits)).add_(shift)


def grid_ends(bits: int) -> tuple[int, int]:
    """Lowest and highest integer before the shift."""
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def quantize_integral_shift(x: Tensor, scale: Tensor, shift: Tensor, bits: int, *, rectify: bool = False) -> Tensor:
    """Rounds `x` to the grid of :func:`integral_shift`; the gradient is the identity, clamped elements included.

    ReLU before it costs nothing where no point of the grid is negative (Z >= 2^(k-1)): the clamp then does what ReLU
    would do, and the result is the same bit for bit.

    Args:
        x: any shape.
        scale: S, broadcastable to `x`.
        shift: Z, broadcastable to `x`.
        bits: k; at most 2^k distinct values come out for each (S, Z).
        rectify: whether the gradient is that of ReLU before; the grid must have no negative point.
    """
    rounded: Tensor = _RoundToShiftedGrid.apply(x, (scale, shift, bits), rectify)
    return rounded


@torch.no_grad()
def quantize_in_place(x: Tensor, scale: Tensor, shift: Tensor, bits: int) -> Tensor:
    """As :func:`quantize_integral_shift` with one grid for the tensor, in the memory of `x`.

    Args:
        x: (N, ...).
        scale: S, 0-d.
        shift: Z, 0-d.
        bits: k.
    """
    if passes.fits_flat(x):
        return passes.round_to_grid(x, (scale, shift, *grid_ends(bits)), out=x)
    for part in chunks(x):
        torch.div(_shifted_codes(x[part], scale, shift, bits), scale, out=x[part])
    return x


def quantize_with_codes(
    x: Tensor, scale: Tensor, shift: Tensor, bits: int, *, rectify: bool = False
) -> tuple[Tensor, Tensor]:
    """As :func:`quantize_integral_shift`, with the grid's integers beside it.

    Args:
        x: (N, ...).
        scale: S, 0-d.
        shift: Z, 0-d.
        bits: k.
        rectify: as of :func:`quantize_integral_shift`.

    Returns:
        The rounded tensor, and the integers S times it, in bfloat16 (exact up to 256).
    """
    rounded, codes = _RoundAndKeepCodes.apply(x, (scale, shift, bits), rectify)
    return rounded, codes


class _RoundWeight(torch.autograd.Function):
    """A weight on the grids of its channels, its integers and scales; the identity as gradient."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
        found = passes.rounded_weight(weight, bits, SMALLEST_SPAN)
        ctx.mark_non_differentiable(*found[1:])
        ctx.set_materialize_grads(False)
        return found

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:  # noqa: ARG004 - torch's signature
        return grads[0], None


def affine_grid(low: Tensor, high: Tensor, bits: int, *, symmetric: bool) -> tuple[Tensor, Tensor]:
    """Scale and integer zero point of torch's affine grid, for a range that is widened to contain zero.

    Asymmetric: codes 0 .. 2^k - 1. Symmetric: codes -(2^(k-1) - 1) .. 2^(k-1) - 1 about zero.

    Args:
        low: lower end, any shape.
        high: upper end, same shape.
        bits: k.
        symmetric: whether the zero point is 0 and the range is that of the larger magnitude.

    Returns:
        Scale (float) and zero point (int32), in the shape of `low`.
    """
    low, high = low.clamp_max(0.0), high.clamp_min(0.0)
    if symmetric:
        scale = torch.maximum(-low, high).clamp_min(SMALLEST_SPAN) / (2 ** (bits - 1) - 1)
        return scale, torch.zeros_like(scale, dtype=torch.int32)
    scale = (high - low).clamp_min(SMALLEST_SPAN) / (2**bits - 1)
    return scale, torch.round(-low / scale).clamp(0, 2**bits - 1).to(torch.int32)


def code_range(bits: int, *, symmetric: bool) -> tuple[int, int]:
    """Lowest and highest integer code of :func:`affine_grid`."""
    return (1 - 2 ** (bits - 1), 2 ** (bits - 1) - 1) if symmetric else (0, 2**bits - 1)


def quantize_affine(x: Tensor, scale: Tensor, zero_point: Tensor, bits: int, *, symmetric: bool) -> Tensor:
    """Rounds `x` to the grid of :func:`affine_grid`; the gradient of clamped elements is zero.

    Args:
        x: any shape; where `scale` has more than one element, its dimension 0 is the channel.
        scale: 0-d for one grid, (C,) for one grid a channel.
        zero_point: as `scale`, int32.
        bits: k.
        symmetric: as given to :func:`affine_grid`.
    """
    lowest, highest = code_range(bits, symmetric=symmetric)
    if scale.ndim == 0:
        return torch.fake_quantize_per_tensor_affine(x, scale, zero_point, lowest, highest)
    return torch.fake_quantize_per_channel_affine(x, scale, zero_point, 0, lowest, highest)


def quantize_weight(weight: Tensor, bits: int, *, rounding: str, symmetric: bool, per_channel: bool) -> Tensor:
    """Rounds a weight to the grid of its own live range; the range itself carries no gradient.

    Args:
        weight: (out, ...).
        bits: k.
        rounding: `integral_shift` or `scale_zero_point`.
        symmetric: used by `scale_zero_point` only.
        per_channel: one range for each slice of dimension 0, or one for the tensor.
    """
    with unobserved(weight):
        if per_channel and rounding == "integral_shift" and passes.fits_weight(weight):
            rounded, codes, scale = _RoundWeight.apply(weight, bits)
            return on_grid(rounded, scale.view(-1, *(1,) * (weight.ndim - 1)), codes)
    data = weight.detach()
    if per_channel:
        low, high = torch.aminmax(data.reshape(data.shape[0], -1), dim=1)
    else:
        low, high = torch.aminmax(data)
    if rounding == "integral_shift":
        shape = (-1,) + (1,) * (weight.ndim - 1) if per_channel else ()
        scale, shift = integral_shift(low, high, bits)
        scale = scale.reshape(shape)
        return on_grid(quantize_integral_shift(weight, scale, shift.reshape(shape), bits), scale)
    scale, zero_point = affine_grid(low, high, bits, symmetric=symmetric)
    found = quantize_affine(weight, scale, zero_point, bits, symmetric=symmetric)
    inverse = scale.reciprocal()
    return on_grid(found, inverse.reshape(-1, *(1,) * (weight.ndim - 1)) if per_channel else inverse)
