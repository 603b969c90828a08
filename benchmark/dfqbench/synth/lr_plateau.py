"""A learning-rate schedule on the device, so that no step waits for the device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class DevicePlateau:
    """`torch.optim.lr_scheduler.ReduceLROnPlateau` for a rate on the device: the loss is not read.

    The rate is changed in place. Torch's defaults: mode `min`, relative threshold, no cooldown.

    Attributes:
        lr: 0-d tensor, the learning rate, for the optimizer (`Adam([x], lr=plateau.lr, fused=True)`).
    """

    def __init__(
        self,
        lr: Tensor,
        *,
        factor: float,
        patience: int,
        min_lr: float,
        threshold: float = 1e-4,
        eps: float = 1e-8,
    ) -> None:
        """Start with rate `lr` (0-d); the other parameters are those of `ReduceLROnPlateau`."""
        self.lr = lr
        self._factor = factor
        self._patience = patience
        self._min_lr = min_lr
        self._threshold = threshold
        self._eps = eps
        # In double precision, as in torch.
        self._best = torch.full((), torch.inf, dtype=torch.float64, device=lr.device)
        self._bad = torch.zeros((), dtype=torch.int64, device=lr.device)

    @torch.no_grad()
    def step(self, loss: Tensor) -> None:
        """Take the loss (0-d) of one step into account."""
        loss = loss.detach().to(torch.float64)
        better = loss < self._best * (1.0 - self._threshold)
        torch.where(better, loss, self._best, out=self._best)
        self._bad.add_(1).masked_fill_(better, 0)
        due = self._bad > self._patience
        lower = (self.lr * self._factor).clamp_min(self._min_lr)
        changes = due & (self.lr - lower > self._eps)
        self.lr.copy_(torch.where(changes, lower, self.lr))
        self._bad.masked_fill_(due, 0)

    def state_dict(self) -> dict[str, Any]:
        """Return the rate, the best loss and the number of bad steps."""
        return {"lr": self.lr, "best": self._best, "bad": self._bad}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned; the rate tensor stays the same object."""
        for name, value in self.state_dict().items():
            value.copy_(state[name])
