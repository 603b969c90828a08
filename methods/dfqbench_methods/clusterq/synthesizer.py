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
    generator_plan,
    generator_source,
    is_large,
    released_cluster_term,
    released_diversity_term,
)

if TYPE_CHECKING:
    from dfqbench_methods.clusterq.plugin import ClusterqParams


class CentroidTerm(LossTerm):
    """L_cluster of `mode=paper`: samples near their class's perturbed centroid in the deep layers.

    From `start` on, each epoch's correctly classified samples are averaged by class; at its end the centroids move
    towards that average. Classes without a centroid do not count (methods.md 3, inferred).
    """

    needs_statistics = True
    capturable = True

    def __init__(self, params: ClusterqParams, *, start: int, epoch_steps: int, classes: int) -> None:
        super().__init__("cluster", params.cluster_weight, start)
        self._params = params
        self._epoch_steps = epoch_steps
        self._classes = classes
        self._centroids: ClassCentroids | None = None

    def _kept(self, width: int, device: torch.device) -> ClassCentroids:
        if self._centroids is None:
            self._centroids = ClassCentroids(self._classes, width, device, self._params.centroid_decay)
        return self._centroids

    def loss(self, view: GeneratorPass) -> Tensor:
        """Distance of each sample's deep statistics from its class's perturbed centroid."""
        moments, share = deep_moments(view.statistics)
        centroids = self._kept(moments.mean.shape[1], moments.mean.device)
        wanted = Moments(centroids.mean[view.labels], centroids.var[view.labels])
        valid = centroids.known[view.labels]
        if self._params.correct_only:
            valid = valid & view.correct
        perturbation = Moments(
            _uniform(moments.mean, self._params.noise_mean, view.random),
            _uniform(moments.var, self._params.noise_var, view.random),
        )
        return cluster_loss(moments, share, wanted, valid, perturbation)

    def observe(self, view: GeneratorPass, step: int) -> None:
        """Collects the samples of the pass."""
        if step < self.start:
            return
        moments, _ = deep_moments(view.statistics)
        correct = view.correct if self._params.correct_only else torch.ones_like(view.correct)
        centroids = self._kept(moments.mean.shape[1], moments.mean.device)
        centroids.collect(moments, view.labels, correct)

    def finish(self, step: int) -> None:
        """Moves the centroids at the end of an epoch."""
        if self._centroids is not None and step >= self.start and (step + 1 - self.start) % self._epoch_steps == 0:
            self._centroids.update()

    def state_dict(self) -> dict[str, Any]:
        """The centroids, once there are any."""
        return {} if self._centroids is None else self._centroids.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        if state:
            self._kept(state["mean"].shape[1], state["mean"].device).load_state_dict(state)


def _uniform(like: Tensor, half_width: float, random: torch.Generator) -> Tensor:
    drawn = torch.rand(like.shape, generator=random, device=like.device, dtype=like.dtype)
    return (drawn * 2 - 1) * half_width


def released_loss(statistics: PassStatistics, params: ClusterqParams, random: torch.Generator) -> Tensor:
    """What the released code adds to GDFQ's loss (methods.md 3f).

    Batch statistics of the deep layers against the running ones, layers weighted geometrically, plus a diversity term
    that is constant in the images.

    Args:
        statistics: of the teacher's pass.
        params: half widths and weight of the diversity term.
        random: for its noise.

    Returns:
        0-d loss, to be weighted by `cluster_weight`.
    """
    gaps, diversity = [], []
    for layer in statistics.layers[deep_start(len(statistics.layers)) :]:
        found = batch_moments(layer.moments)
        gaps.append((found.mean - layer.running.mean).square().mean() + (found.var - layer.running.var).square().mean())
        diversity.append(
            released_diversity_term(found.mean, _uniform(found.mean, params.noise_mean, random))
            + released_diversity_term(found.var, _uniform(found.var, params.noise_var, random))
        )
    return released_cluster_term(gaps) + params.diversity_weight * torch.stack(diversity).mean()


def _terms(ctx: Context, params: ClusterqParams) -> list[LossTerm]:
    plan = generator_plan(ctx, params)
    start = plan.step_of(params.cluster_start_large if is_large(ctx.card.input_size) else params.cluster_start)
    if params.mode == "paper":
        return [CentroidTerm(params, start=start, epoch_steps=plan.epoch_steps, classes=ctx.card.classes)]
    if params.mode == "released":
        return [
            FunctionTerm(
                "cluster",
                params.cluster_weight,
                lambda view: released_loss(view.statistics, params, view.random),
                start=start,
                statistics=True,
            )
        ]
    return []


def synthesize(teacher: nn.Module, ctx: Context, params: ClusterqParams) -> GeneratorSource:
    """GDFQ's generator with ClusterQ's loss and augmentation."""
    few = not is_large(ctx.card.input_size) and ctx.card.classes <= FEW_CLASSES
    latent = params.latent_few_classes if few else params.latent
    losses = [*base_terms(ctx, params), *_terms(ctx, params)]
    return generator_source(teacher, ctx, params, what="clusterq", losses=losses, latent=latent)
