"""Learned rounding of weights (AdaRound), learned step sizes of activations (LSQ), and where both start.

Every formula of a scheme has the levels step * n with integers n from `lowest` to `highest`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from dfqbench.quant.fake_quantize import affine_integers, affine_qparams, zeroq_qparams
from dfqbench.quant.fake_quantize_modules import FakeQuantizeWeight
from dfqbench.quant.scheme import Granularity, Operand, Rounding

STRETCH = 0.1
"""h = clamp((1 + 2 STRETCH) sigmoid(v) - STRETCH, 0, 1) reaches 0 and 1 at finite v (AdaRound)."""


class Levels(NamedTuple):
    """The quantization levels step * n, lowest <= n <= highest; all of one shape, integers in float."""

    step: Tensor
    lowest: Tensor
    highest: Tensor

    @classmethod
    def from_qparams(cls, scale: Tensor, zero_point: Tensor, operand: Operand, bits: int) -> Levels:
        """Return the levels of a scale and a zero point in an operand's formula (see `quant.fake_quantize`)."""
        if operand.rounding is Rounding.ZEROQ:
            lowest = zero_point - 2 ** (bits - 1)
            return cls(scale.reciprocal(), lowest, lowest + 2**bits - 1)
        first, last = affine_integers(bits, symmetric=operand.symmetric)
        zero = zero_point.to(scale.dtype)
        return cls(scale, first - zero, last - zero)

    @classmethod
    def from_range(cls, low: Tensor, high: Tensor, operand: Operand, bits: int) -> Levels:
        """Return the levels of the range from `low` to `high` in an operand's formula."""
        if operand.rounding is Rounding.ZEROQ:
            if operand.zero_in_range:
                low, high = low.clamp_max(0.0), high.clamp_min(0.0)
            return cls.from_qparams(*zeroq_qparams(low, high, bits), operand, bits)
        return cls.from_qparams(*affine_qparams(low, high, bits, symmetric=operand.symmetric), operand, bits)

    def qparams(self, operand: Operand, bits: int) -> tuple[Tensor, Tensor]:
        """Return scale and zero point in an operand's formula."""
        if operand.rounding is Rounding.ZEROQ:
            return self.step.reciprocal(), self.lowest + 2 ** (bits - 1)
        first, _ = affine_integers(bits, symmetric=operand.symmetric)
        return self.step, (first - self.lowest).to(torch.int32)

    def view(self, *shape: int) -> Levels:
        """Return the same levels in another shape."""
        return Levels(*(part.view(shape) for part in self))

    def ends(self) -> tuple[Tensor, Tensor]:
        """Return the outermost levels."""
        return self.lowest * self.step, self.highest * self.step

    def nearest(self, x: Tensor) -> Tensor:
        """Round `x` to the nearest level."""
        return (x / self.step).round_().clamp_(self.lowest, self.highest).mul_(self.step)


@torch.no_grad()
def search_levels(x: Tensor, ends: tuple[Tensor, Tensor], operand: Operand, bits: int, power: float) -> Levels:
    """Return the levels of the range r * ends, r = 1.00, 0.99 ... 0.01, with the least mean |x - q(x)|^power.

    Args:
        x: (rows, n).
        ends: low and high of each row's range, (rows,).
        operand: the formula.
        bits: k.
        power: p.

    Returns:
        Levels (rows,); of equal errors the wider range.
    """
    low, high = ends
    best, error = Levels.from_range(low, high, operand, bits), torch.full_like(low, torch.inf)
    for percent in range(100, 0, -1):
        levels = Levels.from_range(low * (percent / 100), high * (percent / 100), operand, bits)
        new = (levels.view(-1, 1).nearest(x) - x).abs_().pow_(power).mean(1)
        best = Levels(*(torch.where(new < error, a, b) for a, b in zip(levels, best, strict=True)))
        error = torch.minimum(error, new)
    return best


def weight_levels(weight: Tensor, operand: Operand, bits: int, power: float) -> Levels:
    """Return the levels of `search_levels` for a weight (out, ...): (out,), or 0-d where the tensor has one range."""
    per_channel = operand.granularity is Granularity.CHANNEL
    rows = weight.detach().flatten(1) if per_channel else weight.detach().reshape(1, -1)
    levels = search_levels(rows, torch.aminmax(rows, dim=1), operand, bits, power)
    return levels if per_channel else levels.view()


def sign_range(low: Tensor, high: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Return the range whose zero point is the lowest level (no values below zero) or the middle one (Genie)."""
    half = 2 ** (bits - 1)
    step = torch.maximum(-low / half, high / (half - 1))
    signed = low < 0
    return torch.where(signed, -half * step, 0.0), torch.where(signed, (half - 1) * step, high)


class AdaRound(FakeQuantizeWeight):
    """A parametrization with learned rounding: s * clamp(floor(w / s_0) + h, lowest, highest).

    h starts as the fraction that floor cuts off, so that the first weight is the one in float, clipped. The floor stays
    that of the first step size (Genie, released code).

    Attributes:
        s: step size, (out, 1, ...) or 0-d, learned or not.
        v: of the weight's shape; h = clamp(1.2 sigmoid(v) - 0.1, 0, 1).
    """

    def __init__(self, weight: Tensor, frozen: FakeQuantizeWeight, *, learns_scale: bool) -> None:
        """Start from the fixed scale and zero point of a weight quantizer.

        Args:
            weight: in float, (out, ...).
            frozen: the layer's weight quantizer; `freeze` was called.
            learns_scale: whether the step size is learned.
        """
        super().__init__(frozen.operand, frozen.bits)
        if frozen.scale is None or frozen.zero_point is None:
            raise ValueError("the weight quantizer has no fixed scale")
        levels = Levels.from_qparams(frozen.scale, frozen.zero_point, frozen.operand, frozen.bits)
        if frozen.scale.ndim:
            levels = levels.view(-1, *(1,) * (weight.ndim - 1))
        self.lowest, self.highest = levels.lowest, levels.highest
        self.s = nn.Parameter(levels.step.clone(), requires_grad=learns_scale)
        scaled = weight.detach() / levels.step
        self.floor = scaled.floor()
        sigmoid = (scaled - self.floor + STRETCH) / (1 + 2 * STRETCH)
        self.v = nn.Parameter(torch.logit(sigmoid))

    def h(self) -> Tensor:
        """Return the rounding, from 0 (down) to 1 (up)."""
        return ((1 + 2 * STRETCH) * self.v.sigmoid() - STRETCH).clamp(0, 1)

    def rounded(self, weight: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG002 - the weight in float is in `floor` and `v`
        """Return the weight (out, ...) and 1 / step size."""
        return (self.floor + self.h()).clamp(self.lowest, self.highest) * self.s, self.s.reciprocal()

    def step(self, weight: Tensor) -> Tensor:  # noqa: ARG002 - as above
        """Return the step size, (out,) or 0-d, without a gradient."""
        return self.s.detach().flatten() if self.s.ndim else self.s.detach()

    def penalty(self, beta: float | Tensor) -> Tensor:
        """Return sum 1 - |2h - 1|^beta (0-d)."""
        return (1 - (2 * self.h() - 1).abs().pow(beta)).sum()

    @torch.no_grad()
    def finish(self, weight: Tensor, frozen: FakeQuantizeWeight) -> None:
        """Round h to 0 or 1, set `weight` to the levels, in place, and fix the learned scale in `frozen`."""
        integers = (self.floor + (self.v >= 0)).clamp(self.lowest, self.highest)
        weight.copy_(integers * self.s)
        shape = frozen.scale.shape if frozen.scale is not None else ()
        levels = Levels(self.s.detach(), self.lowest, self.highest).view(*shape)
        frozen.freeze(*levels.qparams(self.operand, self.bits))


class LearnedStep(nn.Module):
    """Fake quantization of an activation with a learned step size (LSQ, without its gradient scale) and QDrop.

    Attributes:
        step: 0-d.
        drop: share of elements left in float.
    """

    def __init__(self, levels: Levels, drop: float, generator: torch.Generator) -> None:
        super().__init__()
        self.lowest, self.highest = levels.lowest, levels.highest
        self.step = nn.Parameter(levels.step.clone())
        self.drop = drop
        self._generator = generator

    def forward(self, x: Tensor) -> Tensor:
        """Round x (any shape); the gradient of rounding is the identity."""
        n = (x / self.step).clamp(self.lowest, self.highest)
        out = (n + (n.round() - n).detach()) * self.step
        return mix(out, x, self.drop, self._generator)

    def levels(self) -> Levels:
        """Return the present levels (0-d)."""
        return Levels(self.step.detach(), self.lowest, self.highest)


def mix(x: Tensor, other: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Return `x` with a random share of its elements replaced by those of `other`."""
    if share == 0:
        return x
    return torch.where(torch.rand(x.shape, generator=generator, device=x.device) < share, other, x)
