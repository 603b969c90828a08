"""ClusterQ's losses in the generator loop (methods.md 3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dfqbench.api import Context
from dfqbench.synth import (
    ClassCentroids,
    ClassGroups,
    DeepStatistics,
    FunctionTerm,
    GeneratorPass,
    GeneratorSource,
    LossTerm,
    base_terms,
    batch_size,
    centroid_loss,
    generator_schedule,
    group_moments,
    spread_of,
)
from dfqbench_methods.clusterq.released import released_loss

if TYPE_CHECKING:
    from dfqbench_methods.clusterq.plugin import ClusterqParams

ENOUGH_SAMPLES = 8
"""Samples of a class, on average, from which `grouping=auto` groups the generator's batch."""


class CentroidTerm(LossTerm):
    """sfda_weight L_SFDA + icv_weight L_ICV of `mode=paper`: each class as a group, near its centroid.

    After each step of the generator (or each epoch) from `start` on, the centroids move towards the groups. A class
    without samples or without a centroid does not count.
    """

    needs_statistics = True
    capturable = True

    def __init__(self, ctx: Context, params: ClusterqParams) -> None:
        schedule = generator_schedule(ctx, params)
        super().__init__("cluster", 1.0, schedule.step_of(params.centroid_start))
        self._params = params
        self._epoch_steps = schedule.epoch_steps
        self._classes = ctx.card.classes
        self._device = ctx.device
        enough = batch_size(params, ctx.card) >= ENOUGH_SAMPLES * ctx.card.classes
        self._single_class = params.grouping == "single_class" or (params.grouping == "auto" and not enough)
        self._by_epoch = params.centroid_every == "epoch"
        self._centroids: ClassCentroids | None = None

    def _centroids_of(self, width: int) -> ClassCentroids:
        """Return the centroids, at first new ones for S = `width`."""
        if self._centroids is None:
            rate, by_epoch = self._params.centroid_rate, self._by_epoch
            self._centroids = ClassCentroids(self._classes, width, self._device, rate=rate, by_epoch=by_epoch)
        return self._centroids

    def _groups(self, view: GeneratorPass) -> tuple[ClassGroups, DeepStatistics]:
        """Return the statistics of the classes in the batch, or of the further batch's single class."""
        view = view.single_class if self._single_class else view
        labels = view.labels
        if self._single_class:
            classes, group = labels[:1], torch.zeros_like(labels)
        else:
            classes, group = torch.arange(self._classes, device=labels.device), labels
        counted = view.correct if self._params.correct_only else torch.ones_like(view.correct)
        deep = DeepStatistics.of(view.statistics, self._params.deep)
        moments, count = group_moments(deep.moments, group, counted, len(classes))
        return ClassGroups(moments.mean, spread_of(moments.var, self._params.moment), count, classes), deep

    def loss(self, view: GeneratorPass) -> Tensor:
        """Return the weighted distances of the groups from their centroids and from the perturbed centroids."""
        params = self._params
        groups, deep = self._groups(view)
        centroids = self._centroids_of(groups.mean.shape[1])
        mean, spread = centroids.mean[groups.classes], centroids.spread[groups.classes]
        valid = centroids.known[groups.classes] & (groups.count > 0)
        sfda = centroid_loss(groups, mean, spread, valid, deep.share)
        if params.icv_weight == 0:
            return params.sfda_weight * sfda
        mean_noise = params.icv_mean * _normal(mean, view.random)
        spread_noise = params.icv_spread * _normal(spread, view.random)
        if params.noise_scale == "relative":
            mean_noise *= spread_of(deep.running.var, "std")
            spread_noise *= spread_of(deep.running.var, params.moment)
        mean, spread = mean + mean_noise, spread + spread_noise
        icv = centroid_loss(groups, mean, spread, valid, deep.share)
        return params.sfda_weight * sfda + params.icv_weight * icv

    @torch.no_grad()
    def observe(self, view: GeneratorPass, step: int) -> None:
        """Move the centroids, or collect the pass for the end of the epoch."""
        if step < self.start:
            return
        groups, _ = self._groups(view)
        centroids = self._centroids_of(groups.mean.shape[1])
        if self._by_epoch:
            centroids.collect(groups)
        else:
            centroids.update(groups)

    def finish(self, step: int) -> None:
        """Move the centroids at the end of an epoch, if they move by epoch."""
        ends = step >= self.start and (step + 1 - self.start) % self._epoch_steps == 0
        if self._by_epoch and ends and self._centroids is not None:
            self._centroids.end_epoch()

    def state_dict(self) -> dict[str, Any]:
        """Return the centroids, if there are any."""
        return {} if self._centroids is None else self._centroids.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        if state:
            self._centroids_of(state["mean"].shape[1]).load_state_dict(state)


def _normal(like: Tensor, random: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=random, device=like.device, dtype=like.dtype)


def _terms(ctx: Context, params: ClusterqParams) -> list[LossTerm]:
    def released(view: GeneratorPass) -> Tensor:
        return released_loss(view.statistics, params, view.random)

    if params.mode == "paper" and (params.sfda_weight or params.icv_weight):
        return [CentroidTerm(ctx, params)]
    if params.mode == "released":
        start = generator_schedule(ctx, params).step_of(params.centroid_start)
        return [FunctionTerm("cluster", params.sfda_weight, released, start=start, statistics=True)]
    return []


def synthesize(teacher: nn.Module, ctx: Context, params: ClusterqParams) -> GeneratorSource:
    """Build GDFQ's generator with ClusterQ's losses."""
    losses = [*base_terms(ctx, params), *_terms(ctx, params)]
    return GeneratorSource(teacher, ctx, params, what="clusterq", losses=losses)
