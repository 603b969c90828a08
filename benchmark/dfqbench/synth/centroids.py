"""Class centroids of deep BatchNorm-input statistics (ClusterQ; methods.md 3)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dfqbench.synth.moments import Moments
from dfqbench.synth.statistics import PassStatistics


def deep_start(layers: int) -> int:
    """Return the index of the first deep layer of L layers: int((L + 1) / 2) - 2, at least 0 (ClusterQ, released)."""
    return max(0, (layers + 1) // 2 - 2)


def deep_moments(statistics: PassStatistics) -> tuple[Moments, Tensor]:
    """Return the deep layers' moments (N, S) in a pass, variance biased, and weights (S,) that average over them.

    The weights are 1 / (|D| C_l); their sum is 1.
    """
    start = deep_start(len(statistics.layers))
    skipped = sum(layer.running.mean.shape[0] for layer in statistics.layers[:start])
    share = statistics.constants.share[skipped:]
    scale = len(statistics.layers) / (len(statistics.layers) - start)
    per_sample = statistics.per_sample
    return Moments(per_sample.mean[:, skipped:], per_sample.var[:, skipped:]), share * scale


class ClassCentroids:
    """The mean statistics of each class's correctly classified samples, as a moving average over epochs.

    Attributes:
        mean: (classes, S).
        var: (classes, S).
        known: bool (classes,), whether a class has a centroid.
    """

    def __init__(self, classes: int, width: int, device: torch.device, decay: float = 0.8) -> None:
        """Start without centroids; `width` is S, the channels of all deep layers, `decay` the old centroid's weight."""
        self.decay = decay
        self.mean = torch.zeros((classes, width), device=device)
        self.var = torch.zeros((classes, width), device=device)
        self.known = torch.zeros(classes, dtype=torch.bool, device=device)
        self._sum_mean = torch.zeros_like(self.mean)
        self._sum_var = torch.zeros_like(self.var)
        self._count = torch.zeros(classes, device=device)

    @torch.no_grad()
    def collect(self, moments: Moments, labels: Tensor, correct: Tensor) -> None:
        """Add the moments (N, S) of samples with labels (N,) to this epoch's sums where `correct`, bool (N,)."""
        weight = correct.to(moments.mean.dtype)
        self._sum_mean.index_add_(0, labels, moments.mean.detach() * weight[:, None])
        self._sum_var.index_add_(0, labels, moments.var.detach() * weight[:, None])
        self._count.index_add_(0, labels, weight)

    @torch.no_grad()
    def update(self) -> None:
        """End an epoch: c <- decay c + (1 - decay) estimate; a class's first estimate is its centroid."""
        seen = self._count > 0
        count = self._count.clamp_min(1)[:, None]
        rate = torch.where(seen & ~self.known, 1.0, 1.0 - self.decay) * seen
        self.mean.lerp_(self._sum_mean / count, rate[:, None].expand_as(self.mean))
        self.var.lerp_(self._sum_var / count, rate[:, None].expand_as(self.var))
        self.known |= seen
        for total in (self._sum_mean, self._sum_var, self._count):
            total.zero_()

    def state_dict(self) -> dict[str, Any]:
        """Return the centroids and this epoch's sums."""
        return {
            "mean": self.mean,
            "var": self.var,
            "known": self.known,
            "sum_mean": self._sum_mean,
            "sum_var": self._sum_var,
            "count": self._count,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        for name, value in self.state_dict().items():
            value.copy_(state[name])


def cluster_loss(
    moments: Moments, share: Tensor, centroids: Moments, valid: Tensor, perturbation: Moments | None = None
) -> Tensor:
    """L_cluster = mean_n 1/|D| sum_l [ mean_c (mu_l - mu_{y,l} - e1)^2 + mean_c (var_l - var_{y,l} - e2)^2 ].

    The perturbation moves the *target*, so it has a gradient; the released code's has none (methods.md 3, inferred
    from the abstract).

    Args:
        moments: (N, S), of each sample's deep layers.
        share: (S,), 1 / (|D| C_l).
        centroids: (N, S), the centroid of each sample's class.
        valid: bool (N,): samples that count (their class has a centroid, the teacher classifies them correctly).
        perturbation: e1 and e2 (N, S), or None.

    Returns:
        0-d loss, averaged over the valid samples; 0 where there is none.
    """
    gap_mean, gap_var = moments.mean - centroids.mean, moments.var - centroids.var
    if perturbation is not None:
        gap_mean, gap_var = gap_mean - perturbation.mean, gap_var - perturbation.var
    each = ((gap_mean.square() + gap_var.square()) * share).sum(1)
    return (each * valid).sum() / valid.sum().clamp_min(1)


def released_cluster_term(gaps: list[Tensor]) -> Tensor:
    """The released code's centroid term: C <- (C + d_l) / n inside the loop over the deep layers' gaps d_l (0-d).

    Its centroids equal the running statistics, its statistics are the batch's, and dividing inside the loop makes the
    layers' weights decay geometrically: d_last / n + d_(last-1) / n^2 + ... (methods.md 3f).
    """
    total = torch.zeros_like(gaps[0])
    for gap in gaps:
        total = (total + gap) / len(gaps)
    return total


def released_diversity_term(statistic: Tensor, noise: Tensor) -> Tensor:
    """The released code's diversity term: MSE(a, a + u) = mean u^2, whose gradient in a is zero."""
    return torch.nn.functional.mse_loss(statistic, statistic + noise)
