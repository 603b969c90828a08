"""Measures of images: separability of classes, homogeneity, spread of attention, distance to BatchNorm statistics."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dfqbench.synth.moments import batch_moments
from dfqbench.synth.statistics import LayerStatistics


def silhouette(features: Tensor, labels: Tensor) -> float | None:
    """Return the mean silhouette coefficient (b - a) / max(a, b) of features by class; -1 to 1, 1: well separated.

    Args:
        features: (N, F), whose distances are Euclidean.
        labels: int64 (N,); classes with a single image are left out.

    Returns:
        The mean; None where fewer than two classes have two images.
    """
    from sklearn.metrics import silhouette_score

    points, classes, counts = _repeated_classes(features, labels)
    if len(counts) < 2:
        return None
    with warnings.catch_warnings():
        # Older releases warn of their own use of numpy; the result is not concerned.
        warnings.simplefilter("ignore", DeprecationWarning)
        return float(silhouette_score(points.numpy(), classes.numpy()))


def centre_margin(features: Tensor, labels: Tensor) -> float | None:
    """Return the mean of (d_other - d_own) / max(d_other, d_own), from class centres; -1 to 1 (after ClusterQ).

    d_own is the distance to the centre of the *other* images of the own class, so that an image does not draw its own
    centre; d_other the distance to the nearest centre of another class.

    Args:
        features: (N, F).
        labels: int64 (N,); classes with a single image are left out.

    Returns:
        The mean; None where fewer than two classes have two images.
    """
    points, classes, counts = _repeated_classes(features, labels)
    if len(counts) < 2:
        return None
    sums = _class_sums(points, classes, counts)
    own = (sums[classes] - points) / (counts[classes] - 1)[:, None]
    to_own = (points - own).norm(dim=1)
    distances = torch.cdist(points, sums / counts[:, None])
    distances[torch.arange(len(points)), classes] = torch.inf
    to_other = distances.min(1).values
    return float(((to_other - to_own) / torch.maximum(to_other, to_own).clamp_min(1e-12)).mean())


def attention_spread(centres: Tensor, labels: Tensor) -> float | None:
    """Return the RMS distance of attention centres to their class's mean, unbiased within classes (ACQ's claim).

    Args:
        centres: (N, 2), each side of the image from -1 to 1.
        labels: int64 (N,); classes with a single image are left out.

    Returns:
        The spread; None where no class has two images.
    """
    points, classes, counts = _repeated_classes(centres, labels)
    if not len(points):
        return None
    means = _class_sums(points, classes, counts) / counts[:, None]
    gaps = (points - means[classes]).square().sum()
    return float((gaps / (len(points) - len(counts))).sqrt())


def homogeneity(features: Tensor) -> float | None:
    """Return the mean cosine similarity of two different rows of features (N, F); None for fewer than two rows."""
    count = len(features)
    if count < 2:
        return None
    unit = F.normalize(features.double(), dim=1)
    return float(((unit @ unit.T).sum() - unit.square().sum()) / (count * (count - 1)))


def layer_distance(layer: LayerStatistics) -> dict[str, Any]:
    """Return distances of a batch's statistics to those of one BatchNorm layer.

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


def _repeated_classes(points: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return, of classes with two images or more, float64 points, classes from 0 on, and the images of each class."""
    _, classes, counts = torch.unique(labels, return_inverse=True, return_counts=True)
    chosen = counts[classes] > 1
    _, classes, counts = torch.unique(labels[chosen], return_inverse=True, return_counts=True)
    return points[chosen].double(), classes, counts


def _class_sums(points: Tensor, classes: Tensor, counts: Tensor) -> Tensor:
    return points.new_zeros(len(counts), points.shape[1]).index_add_(0, classes, points)
