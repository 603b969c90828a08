"""How penultimate features of images lie to one another: separability of classes, and homogeneity."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor
from torch.nn import functional as F


def classes_of(labels: Tensor) -> tuple[Tensor, Tensor]:
    """The classes that occur, as positions from 0 on (N,), and how often each does (classes,)."""
    _, inverse, counts = torch.unique(labels, return_inverse=True, return_counts=True)
    return inverse, counts


def several(labels: Tensor) -> Tensor:
    """Bool (N,): images whose class has at least two among them."""
    inverse, counts = classes_of(labels)
    return torch.ge(counts[inverse], 2)


def silhouette(features: Tensor, labels: Tensor) -> float | None:
    """Mean silhouette coefficient (b - a) / max(a, b) of features by class, Euclidean; -1 to 1, 1: well separated.

    Args:
        features: (N, F).
        labels: int64 (N,); classes with a single image are left out.

    Returns:
        The mean; None where fewer than two classes have two images.
    """
    from sklearn.metrics import silhouette_score

    chosen = several(labels)
    if len(classes_of(labels[chosen])[1]) < 2:
        return None
    with warnings.catch_warnings():
        # Older releases warn of their own use of numpy; the result is not concerned.
        warnings.simplefilter("ignore", DeprecationWarning)
        return float(silhouette_score(features[chosen].double().numpy(), labels[chosen].numpy()))


def centre_margin(features: Tensor, labels: Tensor) -> float | None:
    """Mean of (d_other - d_own) / max(d_other, d_own), from class centres; -1 to 1 (after ClusterQ's separability).

    d_own is the distance to the centre of the *other* images of the own class, so that an image does not draw its own
    centre; d_other the distance to the nearest centre of another class.

    Args:
        features: (N, F).
        labels: int64 (N,); classes with a single image are left out.

    Returns:
        The mean; None where fewer than two classes have two images.
    """
    chosen = several(labels)
    points, classes = features[chosen].double(), labels[chosen]
    inverse, counts = classes_of(classes)
    if len(counts) < 2:
        return None
    sums = torch.zeros(len(counts), points.shape[1], dtype=points.dtype).index_add_(0, inverse, points)
    own = (sums[inverse] - points) / (counts[inverse] - 1)[:, None]
    to_own = (points - own).norm(dim=1)
    distances = torch.cdist(points, sums / counts[:, None])
    distances[torch.arange(len(points)), inverse] = torch.inf
    to_other = distances.min(1).values
    return float(((to_other - to_own) / torch.maximum(to_other, to_own).clamp_min(1e-12)).mean())


def homogeneity(features: Tensor) -> float | None:
    """Mean cosine similarity of the features of two different images; 1: all point the same way.

    Args:
        features: (N, F).

    Returns:
        The mean over pairs; None for fewer than two images.
    """
    count = len(features)
    if count < 2:
        return None
    unit = F.normalize(features.double(), dim=1)
    return float(((unit @ unit.T).sum() - unit.square().sum()) / (count * (count - 1)))
