"""Fake quantization: rounding to quantization levels in float, as functions of a tensor, its range and a bit-width.

Two formulas are in use. ZeroQ (methods.md 0.1, released code) multiplies by a scale S and subtracts an integer zero
point Z; torch's affine quantization divides by a step size and adds a zero point. Here `scale` is S in the first and
the step size in the second, as in their sources.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dfqbench.quant.operators import operator
from dfqbench.quant.scheme import Granularity, Operand, Rounding

SMALLEST_SPAN = 1e-8
"""Ranges narrower than this are widened to it (methods.md 0.1, released code)."""


def zeroq_qparams(low: Tensor, high: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Return scale S and zero point Z of ZeroQ's asymmetric quantization.

    S = N / max(M - m, 1e-8) and Z = round(S m) + 2^(k-1), with N = 2^k - 1 (methods.md 0.1, released code); the range
    from m, `low`, to M, `high`, is of any shape, and k is `bits`.
    """
    scale = (2**bits - 1) / (high - low).clamp_min(SMALLEST_SPAN)
    return scale, torch.round(scale * low) + 2 ** (bits - 1)


@operator
def fake_quantize(x: Tensor, scale: Tensor, zero_point: Tensor, bits: int) -> Tensor:
    """Round to the levels of :func:`zeroq_qparams`; the gradient is the identity, clamped elements included.

    The value is (clamp(round(S x - Z), -2^(k-1), 2^(k-1) - 1) + Z) / S.

    Args:
        x: any shape.
        scale: S, broadcastable to `x`.
        zero_point: Z, broadcastable to `x`.
        bits: k; at most 2^k distinct values come out for each (S, Z).
    """
    rounded: Tensor = _FakeQuantize.apply(x, scale, zero_point, bits)
    return rounded


class _FakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, bits: int) -> Tensor:  # noqa: ARG004
        half = 2 ** (bits - 1)
        return (x * scale).sub_(zero_point).round_().clamp_(-half, half - 1).add_(zero_point).div_(scale)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:  # noqa: ARG004
        return grads[0], None, None, None


@operator
def fake_quantize_channels(weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Apply :func:`fake_quantize` to each output channel with the range from its minimum to its maximum.

    Returns the rounded weight (out, ...), and S of each channel, (out, 1, ...), without a gradient.
    """
    low, high = torch.aminmax(weight.detach().flatten(1), dim=1)
    shape = (-1,) + (1,) * (weight.ndim - 1)
    scale, zero_point = (part.view(shape) for part in zeroq_qparams(low, high, bits))
    return fake_quantize(weight, scale, zero_point, bits), scale


def affine_qparams(low: Tensor, high: Tensor, bits: int, *, symmetric: bool) -> tuple[Tensor, Tensor]:
    """Return step size and zero point of torch's affine quantization, for a range that is widened to contain zero.

    Asymmetric: integers 0 .. 2^k - 1. Symmetric: integers -(2^(k-1) - 1) .. 2^(k-1) - 1, zero point 0, and the range of
    the larger magnitude. The zero point is int32.
    """
    low, high = low.clamp_max(0.0), high.clamp_min(0.0)
    if symmetric:
        scale = torch.maximum(-low, high).clamp_min(SMALLEST_SPAN) / (2 ** (bits - 1) - 1)
        return scale, torch.zeros_like(scale, dtype=torch.int32)
    scale = (high - low).clamp_min(SMALLEST_SPAN) / (2**bits - 1)
    return scale, torch.round(-low / scale).clamp(0, 2**bits - 1).to(torch.int32)


def affine_integers(bits: int, *, symmetric: bool) -> tuple[int, int]:
    """Return the lowest and the highest integer of :func:`affine_qparams`."""
    return (1 - 2 ** (bits - 1), 2 ** (bits - 1) - 1) if symmetric else (0, 2**bits - 1)


def fake_quantize_affine(x: Tensor, scale: Tensor, zero_point: Tensor, bits: int, *, symmetric: bool) -> Tensor:
    """Round to the levels of :func:`affine_qparams`; the gradient of clamped elements is zero.

    Scale and zero point are 0-d, or (C,) for one range for each slice of dimension 0 of `x`.
    """
    lowest, highest = affine_integers(bits, symmetric=symmetric)
    if scale.ndim == 0:
        return torch.fake_quantize_per_tensor_affine(x, scale, zero_point, lowest, highest)
    return torch.fake_quantize_per_channel_affine(x, scale, zero_point, 0, lowest, highest)


def activation_qparams(low: Tensor, high: Tensor, operand: Operand, bits: int) -> tuple[Tensor, Tensor]:
    """Return S and Z, or step size and zero point, of an activation's range from `low` to `high` (0-d)."""
    if operand.zero_in_range:
        low, high = low.clamp_max(0.0), high.clamp_min(0.0)
    if operand.rounding is Rounding.ZEROQ:
        return zeroq_qparams(low, high, bits)
    return affine_qparams(low, high, bits, symmetric=operand.symmetric)


def fake_quantize_activation(x: Tensor, scale: Tensor, zero_point: Tensor, operand: Operand, bits: int) -> Tensor:
    """Round `x` (any shape) to the levels of :func:`activation_qparams`."""
    if operand.rounding is Rounding.ZEROQ:
        return fake_quantize(x, scale, zero_point, bits)
    return fake_quantize_affine(x, scale, zero_point, bits, symmetric=operand.symmetric)


def weight_qparams(weight: Tensor, operand: Operand, bits: int) -> tuple[Tensor, Tensor]:
    """Return scale and zero point of a weight (out, ...) from its minimum and maximum: (out,), or 0-d for a tensor's.

    They are those of :func:`zeroq_qparams` or of :func:`affine_qparams`, as the operand's formula says.
    """
    weight = weight.detach()
    per_channel = operand.granularity is Granularity.CHANNEL
    low, high = torch.aminmax(weight.flatten(1), dim=1) if per_channel else torch.aminmax(weight)
    if operand.rounding is Rounding.ZEROQ:
        return zeroq_qparams(low, high, bits)
    return affine_qparams(low, high, bits, symmetric=operand.symmetric)


def integer_range(operand: Operand, bits: int) -> tuple[int, int]:
    """Return the lowest and the highest integer of an operand's levels."""
    if operand.rounding is Rounding.ZEROQ:
        return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    return affine_integers(bits, symmetric=operand.symmetric)


def in_steps(weight: Tensor, scale: Tensor, zero_point: Tensor, operand: Operand) -> Tensor:
    """Return a weight (out, ...) in units of its step size, the number that is rounded to an integer level."""
    scale, zero_point = (_beside(part, weight) for part in (scale, zero_point))
    return weight * scale - zero_point if operand.rounding is Rounding.ZEROQ else weight / scale + zero_point


def from_steps(levels: Tensor, scale: Tensor, zero_point: Tensor, operand: Operand) -> Tensor:
    """Return the weight (out, ...) of integer levels, the inverse of :func:`in_steps`."""
    scale, zero_point = (_beside(part, levels) for part in (scale, zero_point))
    return (levels + zero_point) / scale if operand.rounding is Rounding.ZEROQ else (levels - zero_point) * scale


def _beside(part: Tensor, weight: Tensor) -> Tensor:
    """Return a scale or zero point, (out,) or 0-d, in a shape that broadcasts to the weight."""
    return part.view(-1, *(1,) * (weight.ndim - 1)) if part.ndim else part


def fake_quantize_weight(
    weight: Tensor, operand: Operand, bits: int, qparams: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Round a weight (out, ...) to the levels of its present range, which carries no gradient, or of fixed parameters.

    Args:
        weight: any values.
        operand: how weights are quantized.
        bits: k.
        qparams: fixed scale and zero point as of :func:`weight_qparams`; None: those of the present range.

    Returns:
        The rounded weight, and 1 / step size, 0-d or (out, 1, ...).
    """
    per_channel = operand.granularity is Granularity.CHANNEL
    if operand.rounding is Rounding.ZEROQ and per_channel and qparams is None:
        return fake_quantize_channels(weight, bits)
    scale, zero_point = qparams or weight_qparams(weight, operand, bits)
    factor = _beside(scale, weight)
    if operand.rounding is Rounding.ZEROQ:
        return fake_quantize(weight, factor, _beside(zero_point, weight), bits), factor
    return fake_quantize_affine(weight, scale, zero_point, bits, symmetric=operand.symmetric), factor.reciprocal()


def add_residual_terms(weight: Tensor, rounded: Tensor, scales: Tensor, bits: int) -> Tensor:
    """Add further terms to a rounded weight, each of which rounds what the terms before leave of it (methods.md 9.3).

    With the remainder r = W - Q_1 - .. - Q_k the next term is s clamp(round(r / s), -n, n), n = 2^(bits-1) - 1.

    Args:
        weight: W, (out, ...).
        rounded: Q_1, of the same shape.
        scales: s, (further terms, out); 0 where an output channel has no such term.
        bits: width of each term.

    Returns:
        The sum of all terms, of the weight's shape.
    """
    n = 2 ** (bits - 1) - 1
    for scale in scales:
        step = _beside(scale, weight)
        nearest = torch.round((weight - rounded) / step.clamp_min(torch.finfo(weight.dtype).tiny))
        rounded = rounded + nearest.clamp(-n, n) * step
    return rounded


def fake_quantize_bias(bias: Tensor, x_step: Tensor, w_step: Tensor) -> Tensor:
    """Round a bias to int32 in steps of s_x s_w, as integer hardware adds it; the gradient is the identity.

    The value is s_x s_w clamp(round(b / (s_x s_w)), -2^31, 2^31 - 1).

    Args:
        bias: b, (out,).
        x_step: s_x, step size of the layer's input, 0-d.
        w_step: s_w, step size of the layer's weight, (out,) or 0-d.
    """
    # float32 does not hold every int32.
    step = x_step.double() * w_step.double()
    integers = torch.round(bias.detach().double() / step).clamp(-(2**31), 2**31 - 1)
    return (integers * step).to(bias.dtype) + (bias - bias.detach())
