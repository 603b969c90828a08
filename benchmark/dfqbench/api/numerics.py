"""Conversion between floating-point types; needs torch only when called."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def to_float32(x: Tensor) -> Tensor:
    """Return the tensor in float32 if it has fewer bits (autocast gives bfloat16); float64 stays float64."""
    import torch

    return x.to(torch.promote_types(x.dtype, torch.float32))
