"""Range rules: how an activation's range follows the batches that it sees."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from dfqbench.api.errors import UsageError, unknown_name

RangeRule = Literal["minmax", "ema", "ema-official"]

EMA_DECAY = 0.9
"""Decay of the moving averages (methods.md 0.1, released code)."""
OFFICIAL_EMA_STEPS = 200
"""Steps after which the official EMA's overshoot has washed out (methods.md 0.1)."""


def check_rule(rule: str, steps: int) -> None:
    """Checks a rule's name and that its phase is long enough.

    Raises:
        UsageError: unknown rule, or `ema-official` for fewer than 200 steps (its range would be hundreds of times too
            wide: the bias-corrected value is fed back into the average).
    """
    if rule not in get_args(RangeRule):
        raise unknown_name("range rule", rule, get_args(RangeRule))
    if rule == "ema-official" and steps < OFFICIAL_EMA_STEPS:
        raise UsageError(
            f"range rule 'ema-official' needs at least {OFFICIAL_EMA_STEPS} steps, got {steps}",
            "use rule 'ema' or a longer budget",
        )


class Range(nn.Module):
    """The range of one tensor, with the state of its averages.

    Attributes:
        low: 0-d, lower end.
        high: 0-d, upper end.
        average: (2,), uncorrected moving averages of lower and upper end.
        steps: 0-d int64, batches seen.
    """

    low: Tensor
    high: Tensor
    average: Tensor
    steps: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.zeros(()))
        self.register_buffer("average", torch.zeros(2))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def update(self, x: Tensor, rule: RangeRule, *, rectified: bool = False) -> None:
        """Takes one more batch into account.

        `minmax` is the running minimum and maximum, both starting at 0. `ema` is a plain moving average with the
        usual correction at read-out. `ema-official` is the released code's: the corrected value is fed back
        (methods.md 0.1).

        Args:
            x: the batch's values, any shape.
            rule: how to follow it.
            rectified: whether the values are those of ReLU(x).
        """
        x = x.detach()
        if x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last):
            # In memory order, else torch copies the map.
            x = x.permute(0, 2, 3, 1)
        low, high = torch.aminmax(x)
        if rectified:
            low, high = low.relu(), high.relu()
        self.steps += 1
        if rule == "minmax":
            torch.minimum(self.low, low, out=self.low)
            torch.maximum(self.high, high, out=self.high)
            return
        now = torch.stack((low, high))
        correction = 1 - EMA_DECAY ** self.steps.to(now.dtype)
        self.average.mul_(EMA_DECAY).add_(now, alpha=1 - EMA_DECAY)
        corrected = self.average / correction
        if rule == "ema-official":
            self.average.copy_(corrected)
        self.low.copy_(corrected[0])
        self.high.copy_(corrected[1])
