"""ClusterQ's centroid loss in the generator loop (methods.md 3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dfqbench.api import Context
from dfqbench.synth import (
    FEW_CLASSES,
    ClassCentroids,
    FunctionTerm,
    GeneratorPass,
    GeneratorSource,
    LossTerm,
    Moments,
    PassStatistics,
    base_terms,
    batch_moments,
    cluster_loss,
    deep_moments,
    deep_start,
    generator_schedule,
    is_large,
    released_cluster_term,
    released_diversity_term,
)

if TYPE_CHECKING:
    from dfqbench_methods.clusterq.plugin import ClusterqParams


class CentroidTerm(LossTerm):
    """L_cluster of `mode=paper`: samples near their class's perturbed centroid in the deep layers.

    At the end of each epoch from `start` on, centroids move towards the means of their class's correctly classified
    samples. Classes without a centroid do not count (methods.md 3, inferred).
    """

    needs_statistics = True
    capturable = True

    def __init__(self, params: ClusterqParams, *, start: int, epoch_steps: int, classes: int) -> None:
        super().__init__("cluster", params.cluster_weight, start)
        self._params = params
        self._epoch_steps = epoch_steps
        self._classes = classes
        self._centroids: ClassCentroids | None = None

    def _centroids_like(self, mean: Tensor) -> ClassCentroids:
        """Return the centroids, at first new ones for moments (N, S)."""
        if self._centroids is None:
            decay = self._params.centroid_decay
            self._centroids = ClassCentroids(self._classes, mean.shape[1], mean.device, decay)
        return self._centroids

    def loss(self, view: GeneratorPass) -> Tensor:
        """Return the distance of the samples' deep statistics from their class's perturbed centroid."""
        moments, share = deep_moments(view.statistics)
        centroids = self._centroids_like(moments.mean)
        of_labels = Moments(centroids.mean[view.labels], centroids.var[view.labels])
        valid = centroids.known[view.labels]
        if self._params.correct_only:
            valid = valid & view.correct
        perturbation = Moments(
            _uniform(moments.mean, self._params.noise_mean, view.random),
            _uniform(moments.var, self._params.noise_var, view.random),
        )
        return cluster_loss(moments, share, of_labels, valid, perturbation)

    def observe(self, view: GeneratorPass, step: int) -> None:
        """Collect the samples of the pass."""
        if step < self.start:
            return
        moments, _ = deep_moments(view.statistics)
        correct = view.correct if self._params.correct_only else torch.ones_like(view.correct)
        self._centroids_like(moments.mean).collect(moments, view.labels, correct)

    def finish(self, step: int) -> None:
        """Move the centroids at the end of an epoch."""
        if self._centroids is not None and step >= self.start and (step + 1 - self.start) % self._epoch_steps == 0:
            self._centroids.update()

    def state_dict(self) -> dict[str, Any]:
        """Return the centroids, if there are any."""
        return {} if self._centroids is None else self._centroids.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        if state:
            self._centroids_like(state["mean"]).load_state_dict(state)


def _uniform(like: Tensor, half_width: float, random: torch.Generator) -> Tensor:
    drawn = torch.rand(like.shape, generator=random, device=like.device, dtype=like.dtype)
    return (drawn * 2 - 1) * half_width


def released_loss(statistics: PassStatistics, params: ClusterqParams, random: torch.Generator) -> Tensor:
    """Return the loss (0-d) that the released code adds to GDFQ's, before `cluster_weight` (methods.md 3f).

    Gaps between the deep layers' batch and running statistics, weighted geometrically, plus a diversity term that is
    constant in the images.
    """
    gaps, diversity = [], []
    for layer in statistics.layers[deep_start(len(statistics.layers)) :]:
        batch, running = batch_moments(layer.moments), layer.running
        gaps.append((batch.mean - running.mean).square().mean() + (batch.var - running.var).square().mean())
        diversity.append(
            released_diversity_term(batch.mean, _uniform(batch.mean, params.noise_mean, random))
            + released_diversity_term(batch.var, _uniform(batch.var, params.noise_var, random))
        )
    return released_cluster_term(gaps) + params.diversity_weight * torch.stack(diversity).mean()


def _terms(ctx: Context, params: ClusterqParams) -> list[LossTerm]:
    def released(view: GeneratorPass) -> Tensor:
        return released_loss(view.statistics, params, view.random)

    schedule = generator_schedule(ctx, params)
    start = schedule.step_of(params.cluster_start_large if is_large(ctx.card.input_size) else params.cluster_start)
    if params.mode == "paper":
        return [CentroidTerm(params, start=start, epoch_steps=schedule.epoch_steps, classes=ctx.card.classes)]
    if params.mode == "released":
        return [FunctionTerm("cluster", params.cluster_weight, released, start=start, statistics=True)]
    return []


def synthesize(teacher: nn.Module, ctx: Context, params: ClusterqParams) -> GeneratorSource:
    """Build GDFQ's generator with ClusterQ's loss and augmentation."""
    few = not is_large(ctx.card.input_size) and ctx.card.classes <= FEW_CLASSES
    latent = params.latent_few_classes if few else params.latent
    losses = [*base_terms(ctx, params), *_terms(ctx, params)]
    return GeneratorSource(teacher, ctx, params, what="clusterq", losses=losses, latent=latent)
