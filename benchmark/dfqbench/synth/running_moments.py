"""Running mean and deviation of a quantity, on the device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class RunningMoments:
    """Exponentially weighted mean and variance of values that come in batches.

    After t batches, batch i counts with weight decay^(t - i); the weights are normalised, so that the first batches
    are not mixed with the initial zeros. No operation reads a value from the device.

    Attributes:
        mean: of the shape of a value; 0 before the first batch.
        var: biased variance, of the same shape, within and between batches; 0 before the first batch.
    """

    def __init__(self, shape: tuple[int, ...], decay: float, device: torch.device) -> None:
        """Start without values; each batch reduces the weight of the earlier ones to the share `decay`."""
        self.mean = torch.zeros(shape, device=device)
        self.var = torch.zeros(shape, device=device)
        self._decay = decay
        self._weight = torch.zeros((), device=device)

    @property
    def std(self) -> Tensor:
        """Standard deviation."""
        return self.var.sqrt()

    @torch.no_grad()
    def update(self, values: Tensor) -> None:
        """Add a batch of values (N, *shape), N > 0."""
        self._weight.mul_(self._decay).add_(1)
        share = 1 / self._weight
        var, mean = torch.var_mean(values, 0, correction=0)
        gap = mean - self.mean
        self.mean.add_(share * gap)
        self.var.lerp_(var, share).add_(share * (1 - share) * gap.square())

    def state_dict(self) -> dict[str, Any]:
        """Return mean, variance and the sum of the batches' weights."""
        return {"mean": self.mean, "var": self.var, "weight": self._weight}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        for name, value in self.state_dict().items():
            value.copy_(state[name])
