"""Observers: rules by which an activation's range follows the batches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pkgutil import resolve_name
from typing import ClassVar

import torch
from torch import Tensor, nn

from dfqbench.api.errors import PluginError
from dfqbench.quant.range_rules import check_range_rule, known_range_rules, split_range_rule
from dfqbench.quant.scheme import Operand

EMA_DECAY = 0.9
"""Decay of the moving averages (methods.md 0.1, released code)."""


def observer_class(rule: str) -> type[Observer]:
    """Return the observer class of a range rule, written with or without its number.

    Raises:
        UsageError: unknown rule, or one without an observer (`bn`).
        PluginError: the name does not lead to a subclass of `Observer`.
    """
    check_range_rule(rule)
    name, _ = split_range_rule(rule)
    load = known_range_rules()[name]
    try:
        observer = resolve_name(load)
    except (ImportError, AttributeError) as error:
        raise PluginError(f"range rule '{name}': '{load}' does not load: {error}", "fix the `load` string") from error
    if not isinstance(observer, type) or not issubclass(observer, Observer):
        raise PluginError(
            f"range rule '{name}': '{load}' is no observer", "derive the class from dfqbench.quant.Observer"
        )
    return observer


def make_observer(rule: str, operand: Operand, bits: int) -> Observer:
    """Return a new observer of a range rule, for an activation that is quantized to `bits` as `operand` says.

    Raises:
        UsageError: unknown rule, or one without an observer (`bn`).
        PluginError: the name does not lead to a subclass of `Observer`.
    """
    return observer_class(rule).for_activation(operand, bits, split_range_rule(rule)[1])


def extremes(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return minimum and maximum (0-d) of a tensor, without a copy of a channels-last feature map."""
    x = x.detach()
    in_memory_order = x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)
    return torch.aminmax(x.permute(0, 2, 3, 1) if in_memory_order else x)


class Observer(nn.Module, ABC):
    """The range of one tensor over batches; its state is buffers, so that checkpoints hold it."""

    @classmethod
    def for_activation(cls, operand: Operand, bits: int, number: float | None) -> Observer:  # noqa: ARG003
        """Return an observer of one activation; a rule that depends on more than its values overrides this.

        Args:
            operand: how the activation is quantized.
            bits: its bit-width.
            number: the rule's number, or None: its default.
        """
        return cls()

    def start(self, low: Tensor, high: Tensor) -> None:
        """Take the present range (0-d; 0 and 0 where none is known) into account before the first batch."""

    @abstractmethod
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Take a batch `x` (any shape) into account and return the range, low and high (0-d)."""


class MinMaxObserver(Observer):
    """The running minimum and maximum, both starting at 0 (ZeroQ, released code) or at a range that is known."""

    low: Tensor
    high: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.zeros(()))

    def start(self, low: Tensor, high: Tensor) -> None:
        """Begin with the present range."""
        self.low.copy_(low)
        self.high.copy_(high)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Widen the range to the batch's minimum and maximum."""
        low, high = extremes(x)
        torch.minimum(self.low, low, out=self.low)
        torch.maximum(self.high, high, out=self.high)
        return self.low, self.high


class MovingAverageObserver(Observer):
    """The moving average of each batch's minimum and maximum, with the usual bias correction.

    Attributes:
        feeds_back: whether the corrected value replaces the average.
        average: (2,), averages of minimum and maximum before the correction.
        steps: 0-d int64, batches seen.
    """

    feeds_back: ClassVar[bool] = False
    average: Tensor
    steps: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("average", torch.zeros(2))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Move the averages towards the batch's minimum and maximum."""
        self.steps += 1
        self.average.mul_(EMA_DECAY).add_(torch.stack(extremes(x)), alpha=1 - EMA_DECAY)
        corrected = self.average / (1 - EMA_DECAY ** self.steps.to(self.average.dtype))
        if self.feeds_back:
            self.average.copy_(corrected)
        return corrected[0], corrected[1]


class OfficialMovingAverageObserver(MovingAverageObserver):
    """The released code's moving average: the corrected value is fed back into the average (methods.md 0.1)."""

    feeds_back = True
