"""Distance of images to what the BatchNorm layers remember, layer by layer."""

from __future__ import annotations

from typing import Any

from dfqbench.synth.moments import batch_moments
from dfqbench.synth.statistics import LayerStatistics, PassStatistics


def layer_distance(layer: LayerStatistics) -> dict[str, Any]:
    """Distances of a batch's statistics to one layer's.

    Returns:
        `name`; `bns`, the layer's part of L_BNS (methods.md 0.3): mean over channels of (mu - mu_BN)^2 + (var -
        var_BN)^2; `mean_gap`, the root mean square of (mu - mu_BN) / sigma_BN; `std_gap`, that of sigma / sigma_BN - 1.
    """
    batch, running = batch_moments(layer.moments), layer.running
    sigma = (running.var + layer.eps).sqrt()
    bns = ((batch.mean - running.mean).square() + (batch.var - running.var).square()).mean()
    mean_gap = ((batch.mean - running.mean) / sigma).square().mean().sqrt()
    std_gap = ((batch.var + layer.eps).sqrt() / sigma - 1).square().mean().sqrt()
    return {"name": layer.name, "bns": float(bns), "mean_gap": float(mean_gap), "std_gap": float(std_gap)}


def layer_distances(statistics: PassStatistics) -> list[dict[str, Any]]:
    """`layer_distance` of every BatchNorm call of a pass, in order of execution."""
    return [layer_distance(layer) for layer in statistics.layers]
