"""A check of losses for NaN and infinity that rarely waits for the device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dfqbench.api import NonFiniteError

READ_EVERY = 50
"""Steps between reads of the device."""


class NonFiniteCheck:
    """Stores on the device the first step at which `what`, a loss, was NaN or infinite."""

    def __init__(self, what: str, device: torch.device) -> None:
        self._what = what
        self._first = torch.full((), -1, dtype=torch.int64, device=device)

    @torch.no_grad()
    def note(self, loss: Tensor, step: int) -> None:
        """Take the loss of step `step` (from 1) into account, without reading it."""
        bad = ~torch.isfinite(loss).all().to(self._first.device) & (self._first < 0)
        self._first.masked_fill_(bad, step)

    def step(self, loss: Tensor, step: int) -> None:
        """Take a loss into account, and `check` every 50 steps."""
        self.note(loss, step)
        if step % READ_EVERY == 0:
            self.check()

    def check(self) -> None:
        """Check now (one synchronisation).

        Raises:
            NonFiniteError: a loss so far was not finite.
        """
        first = int(self._first)
        if first >= 0:
            raise NonFiniteError(self._what, first)

    def state_dict(self) -> dict[str, Any]:
        """Return the first bad step."""
        return {"first": self._first}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._first.copy_(state["first"])
