"""DFFG's iteration (methods.md 5; the concept is the abstract's, every constant inferred)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dfqbench.api import Context
from dfqbench.synth import (
    BatchNormStatistics,
    FixedSource,
    Moments,
    PassStatistics,
    bns_loss,
    finite_source,
    optimize_batches,
    positions,
    sample_moments,
    unbiased,
    zeroq_loss,
)

if TYPE_CHECKING:
    from dfqbench_methods.dffg.plugin import DffgParams

SMALLEST_NORM = 1e-30
"""Lower bound of a gradient's norm: an image without a gradient does not move."""


def accumulate(momentum: Tensor, gradient: Tensor, decay: float) -> Tensor:
    """G <- decay g + grad / ||grad||_1 in place, with the norm of each image (MI-FGSM); g and grad (N, C, H, W)."""
    size = gradient.abs().sum((1, 2, 3), keepdim=True).clamp_min(SMALLEST_NORM)
    return momentum.mul_(decay).addcdiv_(gradient, size)


def step_size(step: int, steps: int, first: float, last: float) -> float:
    """Return the size of a step (from 0) on a cosine from `first` to `last`."""
    progress = step / max(1, steps - 1)
    return last + (first - last) * 0.5 * (1 + math.cos(math.pi * progress))


class SignGradient:
    """The iteration of a batch of images; an `ImageOptimizer`.

    Attributes:
        images: (N, C, H, W).
        kept: earlier images, each followed by the teacher's logits.
    """

    def __init__(
        self, teacher: nn.Module, ctx: Context, params: DffgParams, recorder: BatchNormStatistics, count: int
    ) -> None:
        """Start from noise of natural images' mean and deviation; `recorder` is the teacher's, entered."""

        def channels(values: tuple[float, ...]) -> Tensor:
            return torch.tensor(values, device=ctx.device).view(-1, 1, 1)

        stats = ctx.card.target_stats(params.input_target)
        mean, self._std = channels(stats.mean), channels(stats.std)
        self._target = Moments(mean.flatten(), self._std.flatten().square())
        self._low, self._high = channels(ctx.card.lowest), channels(ctx.card.highest)
        self._teacher, self._autocast, self._params, self._recorder = teacher, ctx.autocast, params, recorder
        self._random = ctx.generator
        self._steps = ctx.budget.image_steps(params.iterations)
        self._keep_at = {round(share * self._steps) for share in params.keep} - {0}
        self._step = 0
        self._layer_sizes: Tensor | None = None
        noise = torch.randn((count, *ctx.card.input_size), generator=self._random, device=self._random.device)
        self.images = (noise * self._std + mean).to(memory_format=torch.channels_last)
        self.kept: list[Tensor] = []
        self._momentum = torch.zeros_like(self.images)
        self._run_update = ctx.graphed(self._update, generators=[self._random])

    def step(self) -> Tensor:
        """Move the images and return the loss (0-d) before the step."""
        before = self.images.clone() if self._step in self._keep_at else None
        loss, logits = self._run_update(step_size(self._step, self._steps, self._params.step, self._params.last_step))
        if before is not None:
            self.kept += [before, logits]
        self._step += 1
        return loss

    def _update(self, size: float | Tensor) -> tuple[Tensor, Tensor]:
        """Move the images by a step of this size; return the loss and the teacher's logits before the step."""
        images = self.images.requires_grad_()
        with self._autocast():
            logits = self._teacher(images)
        loss = self._loss(self._recorder.last, images)
        (gradient,) = torch.autograd.grad(loss, images)
        self.images = images.detach()
        if self._params.variability == "pixel":
            noise = torch.randn(gradient.shape, generator=self._random, device=self._random.device)
            gradient = gradient * noise.mul_(self._params.pixel_noise).add_(1)
        direction = accumulate(self._momentum, gradient, self._params.momentum).sign()
        if isinstance(size, Tensor):
            moved = self.images.addcmul_(direction, self._std * -size)
        else:
            moved = self.images.addcmul_(direction, self._std, value=-size)
        torch.minimum(torch.maximum(moved, self._low, out=moved), self._high, out=moved)
        return loss, logits.float()

    def _loss(self, statistics: PassStatistics, images: Tensor) -> Tensor:
        if self._params.statistics == "batch":
            return bns_loss(statistics)
        image = unbiased(sample_moments(images), positions(images))
        weights = self._layer_weights(statistics, len(images)) if self._params.variability == "layers" else None
        return zeroq_loss(statistics, image, self._target, self._params.eps, weights)

    def _layer_weights(self, statistics: PassStatistics, count: int) -> Tensor:
        """Return the factors (N, S) of the layers' gaps: 0 for the layers dropped from an image's loss, else 1."""
        sizes = [layer.running.mean.shape[0] for layer in statistics.layers]
        drawn = torch.rand((count, len(sizes)), generator=self._random, device=self._random.device)
        kept = (drawn >= self._params.layer_drop).to(torch.float32)
        if self._layer_sizes is None:
            self._layer_sizes = torch.tensor(sizes, device=kept.device)
        return kept.repeat_interleave(self._layer_sizes, 1, output_size=sum(sizes))

    def state_dict(self) -> dict[str, Any]:
        """Return images, momentum, kept images and the step."""
        return {"images": self.images, "momentum": self._momentum, "kept": self.kept, "step": self._step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.images.copy_(state["images"])
        self._momentum.copy_(state["momentum"])
        self.kept, self._step = list(state["kept"]), state["step"]


def synthesize(teacher: nn.Module, ctx: Context, params: DffgParams) -> FixedSource:
    """Iterate `params.chains` images, `params.batch` at a time.

    Returns:
        The last iterates of all chains, then those kept before, latest first; with the teacher's logits.

    Raises:
        NonFiniteError: an image is not finite at the end.
    """
    with BatchNormStatistics(teacher) as recorder:
        batches = optimize_batches(
            ctx,
            lambda count: SignGradient(teacher, ctx, params, recorder, count),
            lambda chains: [*chains.kept, chains.images],
            count=params.chains,
            batch=params.batch,
            iterations=params.iterations,
        )
    with torch.no_grad():
        batches = [[*tensors, teacher(tensors[-1])] for tensors in batches]
    pairs = [tensors[i : i + 2] for i in reversed(range(0, len(batches[0]), 2)) for tensors in batches]
    images, logits = (torch.cat(tensors) for tensors in zip(*pairs, strict=True))
    return finite_source(images, logits, "dffg")
