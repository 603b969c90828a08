"""Where the network looks: the spread of attention centres within a class (ACQ's claim)."""

from __future__ import annotations

import torch
from torch import Tensor

from dfqbench.diagnose.features import classes_of, several


def attention_spread(centres: Tensor, labels: Tensor) -> float | None:
    """Root mean squared distance of attention centres to their class's mean centre, unbiased within classes.

    Args:
        centres: (N, 2), each side of the image from -1 to 1.
        labels: int64 (N,); classes with a single image are left out.

    Returns:
        The spread; None where no class has two images.
    """
    chosen = several(labels)
    if not bool(chosen.any()):
        return None
    points = centres[chosen].double()
    inverse, counts = classes_of(labels[chosen])
    sums = torch.zeros(len(counts), 2, dtype=points.dtype).index_add_(0, inverse, points)
    gaps = (points - (sums / counts[:, None])[inverse]).square().sum()
    return float((gaps / (len(points) - len(counts))).sqrt())
