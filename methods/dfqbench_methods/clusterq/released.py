"""What ClusterQ's released code computes, `mode=released` (methods.md 3.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from dfqbench.synth import PassStatistics, batch_moments, deep_start

if TYPE_CHECKING:
    from dfqbench_methods.clusterq.plugin import ClusterqParams


def released_loss(statistics: PassStatistics, params: ClusterqParams, random: torch.Generator) -> Tensor:
    """Return the loss (0-d) that the released code adds to GDFQ's, before `sfda_weight`.

    Gaps between the deep layers' batch and running statistics, weighted geometrically, plus a diversity term that is
    constant in the images.
    """
    gaps, diversity = [], []
    for layer in statistics.layers[deep_start(len(statistics.layers)) :]:
        batch, running = batch_moments(layer.moments), layer.running
        gaps.append((batch.mean - running.mean).square().mean() + (batch.var - running.var).square().mean())
        diversity.append(
            diversity_term(batch.mean, params.released_noise_mean, random)
            + diversity_term(batch.var, params.released_noise_var, random)
        )
    return centroid_term(gaps) + params.released_diversity_weight * torch.stack(diversity).mean()


def centroid_term(gaps: list[Tensor]) -> Tensor:
    """C <- (C + d_l) / n inside the loop over the n deep layers' gaps d_l (0-d).

    The centroids equal the running statistics, the statistics are the batch's, and dividing inside the loop makes the
    layers' weights decay geometrically: d_last / n + d_(last-1) / n^2 + ...
    """
    total = torch.zeros_like(gaps[0])
    for gap in gaps:
        total = (total + gap) / len(gaps)
    return total


def diversity_term(statistic: Tensor, half_width: float, random: torch.Generator) -> Tensor:
    """MSE(a, a + u) = mean u^2, u uniform within the half width: its gradient in a is zero."""
    drawn = torch.rand(statistic.shape, generator=random, device=statistic.device, dtype=statistic.dtype)
    return F.mse_loss(statistic, statistic + (drawn * 2 - 1) * half_width)
