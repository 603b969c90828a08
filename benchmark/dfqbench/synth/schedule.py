"""Learning-rate schedules that live on the device, so that no step waits for it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class DevicePlateau:
    """Reduces a learning rate when a loss stops falling, without reading the loss.

    The rules of `torch.optim.lr_scheduler.ReduceLROnPlateau` in mode `min` with a relative threshold and no
    cooldown, computed on the device and applied in place to a 0-d tensor that the optimizer uses as its rate.

    Attributes:
        lr: 0-d tensor, the learning rate; hand it to the optimizer (`Adam([x], lr=plateau.lr, fused=True)`).
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
        """Starts with no loss seen.

        Args:
            lr: 0-d floating tensor, changed in place.
            factor: the rate is multiplied by it.
            patience: steps without a better loss that are tolerated.
            min_lr: the rate never falls below it.
            threshold: a loss is better when it is below (1 - threshold) times the best one (torch's default).
            eps: smaller changes of the rate are not made (torch's default).
        """
        self.lr = lr
        self._factor = factor
        self._patience = patience
        self._min_lr = min_lr
        self._threshold = threshold
        self._eps = eps
        # As torch compares: in double precision, whatever the loss comes in.
        self._best = torch.full((), torch.inf, dtype=torch.float64, device=lr.device)
        self._bad = torch.zeros((), dtype=torch.int64, device=lr.device)

    @torch.no_grad()
    def step(self, loss: Tensor) -> None:
        """Takes the loss (0-d) of one step into account."""
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
        """Rate, best loss and count of bad steps."""
        return {"lr": self.lr, "best": self._best, "bad": self._bad}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned; the rate tensor stays the same object."""
        self.lr.copy_(state["lr"])
        self._best.copy_(state["best"])
        self._bad.copy_(state["bad"])
