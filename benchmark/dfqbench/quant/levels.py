"""Quantization levels: checks that a tensor takes few enough values, evenly spaced."""

from __future__ import annotations

import torch
from torch import Tensor

SAMPLE = 1 << 16
"""Elements looked at first; a tensor in float shows itself within these."""
TOLERANCE = 0.05
"""Largest distance from a level, in steps; float32 rounding stays far below, unquantized values do not."""


def distinct_levels(values: Tensor, limit: int) -> Tensor | None:
    """Sorted distinct values of a tensor, or None when there are more than `limit`.

    Args:
        values: any shape, without a graph.
        limit: most distinct values of interest.
    """
    flat = values.reshape(-1)
    stride = max(1, flat.numel() // SAMPLE)
    levels: Tensor = torch.unique(flat[::stride])
    if levels.numel() > limit:
        return None
    if stride == 1:
        return levels
    # The rest is only compared with the levels seen: far cheaper than sorting it.
    nearest = torch.searchsorted(levels, flat).clamp_max(levels.numel() - 1)
    others = flat[levels[nearest] != flat]
    levels = torch.unique(torch.cat((levels, torch.unique(others))))
    return levels if levels.numel() <= limit else None


def is_quantized(values: Tensor, bits: int) -> bool:
    """Check that a tensor takes at most 2^bits values, all on that many evenly spaced levels.

    Args:
        values: any shape, without a graph; non-finite values are on no level.
        bits: bit-width.
    """
    levels = distinct_levels(values, 2**bits)
    if levels is None or not bool(torch.isfinite(levels).all()):
        return False
    if levels.numel() <= 2:
        return True
    # The step is unknown: some number of steps must fit between the outermost levels.
    exact = levels.double()
    steps = torch.arange(levels.numel() - 1, 2**bits, dtype=torch.float64, device=values.device)
    position = (exact - exact[0])[None, :] / (exact[-1] - exact[0]) * steps[:, None]
    off = (position - position.round()).abs().amax(dim=1)
    return bool((off < TOLERANCE).any())


def most_levels_per_channel(weight: Tensor) -> int:
    """Largest number of distinct values in any slice of dimension 0.

    Args:
        weight: (out, ...), without a graph.
    """
    rows = weight.reshape(weight.shape[0], -1)
    if rows.shape[1] == 0:
        return 0
    ordered = rows.sort(dim=1).values
    changes = (ordered[:, 1:] != ordered[:, :-1]).sum(dim=1)
    return int(changes.max()) + 1
