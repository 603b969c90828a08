"""Small helpers for tensors of several types; they need torch only when called."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def widened(x: Tensor) -> Tensor:
    """Return the tensor as float32 at least: what autocast narrowed is widened, float64 stays."""
    import torch

    return x.to(torch.promote_types(x.dtype, torch.float32))
