"""Statistics of classes as groups of samples, and their centroids (ClusterQ; methods.md 3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dfqbench.synth.losses import ZEROQ_EPS
from dfqbench.synth.moments import Moments
from dfqbench.synth.statistics import PassStatistics


def deep_start(layers: int, deep: Literal["half", "last_third"] = "half") -> int:
    """Return the index of the first deep layer of L layers.

    `half` is the released code's int((L + 1) / 2) - 2, at least 0; `last_third` leaves ceil(L / 3) layers.
    """
    return max(0, (layers + 1) // 2 - 2) if deep == "half" else 2 * layers // 3


@dataclass(frozen=True, slots=True)
class DeepStatistics:
    """A pass's statistics in the deep layers, concatenated: S is the sum of their channels.

    Attributes:
        moments: of each sample (N, S), variance biased.
        running: the layers' running mean and variance (S,).
        share: (S,), 1 / (|D| C_l): a weighted sum with it is the mean over deep layers of the mean over channels.
    """

    moments: Moments
    running: Moments
    share: Tensor

    @classmethod
    def of(cls, statistics: PassStatistics, deep: Literal["half", "last_third"] = "half") -> DeepStatistics:
        """Take the deep layers of a pass."""
        layers = statistics.layers
        start = deep_start(len(layers), deep)
        channels = slice(sum(layer.running.mean.shape[0] for layer in layers[:start]), None)
        per_sample, running = statistics.per_sample, statistics.running
        return cls(
            Moments(per_sample.mean[:, channels], per_sample.var[:, channels]),
            Moments(running.mean[channels], running.var[channels]),
            statistics.constants.share[channels] * (len(layers) / (len(layers) - start)),
        )


def group_moments(moments: Moments, group: Tensor, counted: Tensor, groups: int) -> tuple[Moments, Tensor]:
    """Pool samples' biased moments (N, S) into those of each group, by the law of total variance.

    M_c = mean_n m_n and V_c = mean_n v_n + mean_n (m_n - M_c)^2 over the counted samples n of group c: mean and
    variance of all their positions (methods.md 3.3).

    Args:
        moments: (N, S).
        group: int64 (N,), from 0.
        counted: bool (N,); other samples are left out.
        groups: their number G.

    Returns:
        Moments (G, S), zeros for a group without samples, and the numbers of counted samples (G,).
    """
    weight = counted.to(moments.mean.dtype)
    count = weight.new_zeros(groups).index_add(0, group, weight)

    def mean(values: Tensor) -> Tensor:
        total = values.new_zeros((groups, values.shape[1])).index_add(0, group, values * weight[:, None])
        return total / count.clamp_min(1)[:, None]

    centre = mean(moments.mean)
    return Moments(centre, mean(moments.var + (moments.mean - centre[group]).square())), count


@dataclass(frozen=True, slots=True)
class ClassGroups:
    """Deep statistics of G classes, each as one group of samples.

    Attributes:
        mean: M_c (G, S).
        spread: standard deviation S_c = sqrt(V_c + 1e-6), or variance V_c, (G, S).
        count: samples of each group (G,); a group without samples has no statistics.
        classes: int64 (G,), each at most once.
    """

    mean: Tensor
    spread: Tensor
    count: Tensor
    classes: Tensor


def spread_of(variance: Tensor, moment: Literal["std", "var"]) -> Tensor:
    """Return sqrt(variance + 1e-6), or the variance."""
    return torch.sqrt(variance + ZEROQ_EPS) if moment == "std" else variance


def centroid_loss(groups: ClassGroups, mean: Tensor, spread: Tensor, valid: Tensor, share: Tensor) -> Tensor:
    """1/|K| sum_{c in K} sum_l w_l [ ||M_c - mu_c||^2 + ||S_c - s_c||^2 ], w_l = 1 / (|D| C_l) (methods.md 3.3).

    L_SFDA where (mu_c, s_c) are centroids, L_ICV where they are perturbed centroids.

    Args:
        groups: of the generated images.
        mean: mu_c (G, S).
        spread: s_c (G, S).
        valid: bool (G,), the groups K.
        share: w_l (S,).

    Returns:
        0-d loss; 0 if K is empty.
    """
    each = (((groups.mean - mean).square() + (groups.spread - spread).square()) * share).sum(1)
    return (each * valid).sum() / valid.sum().clamp_min(1)


class ClassCentroids:
    """Each class's mean and spread as a moving average: c <- (1 - rate) c + rate estimate.

    A class's first estimate is its centroid. A class without samples keeps its centroid, or still has none.
    An estimate is a step's (`update`), or an epoch's mean over samples (`collect` at each step, then `end_epoch`).

    Attributes:
        mean: (classes, S).
        spread: (classes, S).
        known: bool (classes,), whether a class has a centroid.
    """

    def __init__(self, classes: int, width: int, device: torch.device, *, rate: float, by_epoch: bool) -> None:
        """Start without centroids.

        Args:
            classes: number of classes.
            width: S, channels of all deep layers.
            device: where to compute.
            rate: weight of a new estimate.
            by_epoch: estimates are those of epochs.
        """
        self.rate = rate
        self.mean = torch.zeros((classes, width), device=device)
        self.spread = torch.zeros_like(self.mean)
        self.known = torch.zeros(classes, dtype=torch.bool, device=device)
        self._state = {"mean": self.mean, "spread": self.spread, "known": self.known}
        if by_epoch:
            self._sum_mean, self._sum_spread = torch.zeros_like(self.mean), torch.zeros_like(self.mean)
            self._count = torch.zeros(classes, device=device)
            self._state |= {"sum_mean": self._sum_mean, "sum_spread": self._sum_spread, "count": self._count}

    @torch.no_grad()
    def update(self, estimate: ClassGroups) -> None:
        """Move the centroids of the classes with samples."""
        classes, seen = estimate.classes, estimate.count > 0
        known = self.known[classes]
        rate = torch.where(known, self.rate, 1.0).to(self.mean.dtype) * seen
        for centroid, value in ((self.mean, estimate.mean), (self.spread, estimate.spread)):
            centroid.index_copy_(0, classes, torch.lerp(centroid[classes], value, rate[:, None]))
        self.known.index_copy_(0, classes, known | seen)

    @torch.no_grad()
    def collect(self, estimate: ClassGroups) -> None:
        """Add a step to the epoch's estimate, weighted by samples."""
        classes, count = estimate.classes, estimate.count
        self._sum_mean.index_add_(0, classes, estimate.mean * count[:, None])
        self._sum_spread.index_add_(0, classes, estimate.spread * count[:, None])
        self._count.index_add_(0, classes, count)

    @torch.no_grad()
    def end_epoch(self) -> None:
        """Update with the epoch's estimate, and begin another."""
        count = self._count.clamp_min(1)[:, None]
        classes = torch.arange(len(self.known), device=self.known.device)
        self.update(ClassGroups(self._sum_mean / count, self._sum_spread / count, self._count, classes))
        for total in (self._sum_mean, self._sum_spread, self._count):
            total.zero_()

    def state_dict(self) -> dict[str, Tensor]:
        """Return the centroids and an unfinished epoch's sums."""
        return dict(self._state)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what `state_dict` returned."""
        for name, value in self._state.items():
            value.copy_(state[name])
