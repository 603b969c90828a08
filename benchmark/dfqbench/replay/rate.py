"""Learning rates that the host sets, where a recorded step reads them."""

from __future__ import annotations

from typing import Any

import torch


class LearningRate:
    """The learning rate of an optimizer.

    Args:
        value: the first one.
        device: of the optimizer's parameters.
        recorded: whether the optimizer's steps are recorded: it then reads the rate from the device.

    Attributes:
        of_optimizer: what the optimizer is made with.
    """

    def __init__(self, value: float, device: torch.device, *, recorded: bool) -> None:
        self._value = value
        self.of_optimizer: Any = torch.tensor(value, device=device) if recorded else value

    def set(self, optimizer: torch.optim.Optimizer, value: float) -> None:
        """Sets the rate of all the optimizer's parameters; nothing happens on the device where it is as before."""
        if not isinstance(self.of_optimizer, torch.Tensor):
            self.of_optimizer = value
        elif value != self._value:
            self.of_optimizer.fill_(value)
        self._value = value
        for group in optimizer.param_groups:
            # A loaded state has put a copy there.
            group["lr"] = self.of_optimizer
