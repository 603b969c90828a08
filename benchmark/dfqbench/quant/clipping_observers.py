"""Observers whose range may leave out the largest values: means of extremes, percentiles, least error, deviations.

Over several batches the range is the mean of the batches' ranges, weighted by their images, so that no earlier batch is
kept. It contains zero, as the range of `minmax` does.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Self

import torch
from torch import Tensor

from dfqbench.api.precision import to_float32
from dfqbench.quant.fake_quantize import activation_qparams, fake_quantize_activation
from dfqbench.quant.observers import Observer, extremes
from dfqbench.quant.range_rules import PERCENTILE
from dfqbench.quant.scheme import Operand

MSE_RATIOS = 100
"""Clip ratios that `mse` tries, in steps of 1 % (methods2.md 2a uses 80, 7b 100)."""
SIGMA_SIGNED = 1.25
"""Divisor of the multiplier of `sigma` for activations with negative values (SQuant, released code)."""


class BatchMeanObserver(Observer):
    """The mean of the batches' ranges, weighted by their images.

    Attributes:
        total: (2,), sums over the images of lower and upper ends.
        images: 0-d int64, images seen.
    """

    total: Tensor
    images: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("total", torch.zeros(2))
        self.register_buffer("images", torch.zeros((), dtype=torch.int64))

    @abstractmethod
    def batch_range(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the range, low and high (0-d), of a batch `x` (N, ...) in float32; zero is added to it."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Take the range of a batch `x` (N, ...) into account."""
        low, high = self.batch_range(to_float32(x.detach()))
        self.total.add_(torch.stack([low.clamp_max(0.0), high.clamp_min(0.0)]), alpha=len(x))
        self.images += len(x)
        mean = self.total / self.images
        return mean[0], mean[1]


class MeanObserver(BatchMeanObserver):
    """The means over images of each image's minimum and maximum (DSG, released code; methods2.md 2a)."""

    def batch_range(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean minimum and the mean maximum of the images."""
        low, high = torch.aminmax(x.flatten(1), dim=1)
        return low.mean(), high.mean()


class PercentileObserver(BatchMeanObserver):
    """Percentiles of a batch's values: `percent` % of them are below the upper end, and as many above the lower end.

    Exact in each batch, interpolated between two values as numpy.percentile does.
    """

    def __init__(self, percent: float = PERCENTILE) -> None:
        super().__init__()
        self.percent = percent

    @classmethod
    def for_activation(cls, operand: Operand, bits: int, number: float | None) -> Self:  # noqa: ARG003
        """Return an observer of `number` percent."""
        return cls(PERCENTILE if number is None else number)

    def batch_range(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the two percentiles."""
        values = x.flatten()
        rank = (1 - self.percent / 100) * (len(values) - 1)
        return self._value(values, rank, largest=False), self._value(values, rank, largest=True)

    @staticmethod
    def _value(values: Tensor, rank: float, *, largest: bool) -> Tensor:
        """Return the value with this rank from one end, 0 for the outermost; unlike torch.quantile, of any number."""
        outermost = values.topk(min(math.floor(rank) + 2, len(values)), largest=largest).values
        return torch.lerp(outermost[math.floor(rank)], outermost[-1], rank - math.floor(rank))


class MseObserver(BatchMeanObserver):
    """The range with the least mean squared error of a batch's rounded values, of 1.00, 0.99 .. 0.01 times min and max.

    Both ends shrink by the same ratio; of ranges with equal errors the wider one is kept (methods2.md 2a, 7b).
    """

    def __init__(self, operand: Operand, bits: int) -> None:
        super().__init__()
        self.operand = operand
        self.bits = bits

    @classmethod
    def for_activation(cls, operand: Operand, bits: int, number: float | None) -> Self:  # noqa: ARG003
        """Return an observer for these levels."""
        return cls(operand, bits)

    def batch_range(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the range of least error."""
        low, high = extremes(x)
        low, high = low.clamp_max(0.0), high.clamp_min(0.0)
        least = torch.full_like(low, torch.inf)
        ratio = torch.ones_like(low)
        for step in range(MSE_RATIOS):
            tried = torch.full_like(ratio, 1 - step / MSE_RATIOS)
            qparams = activation_qparams(tried * low, tried * high, self.operand, self.bits)
            error = (fake_quantize_activation(x, *qparams, self.operand, self.bits) - x).square_().mean()
            ratio = torch.where(error < least, tried, ratio)
            least = torch.minimum(error, least)
        return ratio * low, ratio * high


class SigmaObserver(BatchMeanObserver):
    """A multiple of the values' standard deviation (SQuant, released code; methods2.md 4).

    Without negative values 0 to m std(positive values), else -a to a with a = m / 1.25 std(values). m is `multiplier`;
    below 6 bits the range ends at the largest magnitude.
    """

    def __init__(self, bits: int, multiplier: float) -> None:
        super().__init__()
        self.bits = bits
        self.multiplier = multiplier

    @classmethod
    def for_activation(cls, operand: Operand, bits: int, number: float | None) -> Self:  # noqa: ARG003
        """Return an observer with the multiplier `number`; by default 12 below 6 bits, 14 below 8, and 25 for 8."""
        default = 12.0 if bits < 6 else 14.0 if bits < 8 else 25.0
        return cls(bits, default if number is None else number)

    def batch_range(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the range of a batch."""
        low, high = extremes(x)
        signed = low < 0
        used = (x > 0) | signed
        count = used.sum()
        mean = torch.where(used, x, 0.0).sum() / count.clamp_min(1)
        variance = torch.where(used, x - mean, 0.0).square_().sum() / (count - 1).clamp_min(1)
        alpha = self.multiplier * variance.sqrt() / torch.where(signed, SIGMA_SIGNED, 1.0)
        if self.bits < 6:
            alpha = torch.minimum(alpha, torch.maximum(-low, high))
        return torch.where(signed, -alpha, torch.zeros_like(alpha)), alpha
