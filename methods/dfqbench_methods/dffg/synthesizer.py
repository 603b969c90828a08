"""DFFG's iteration (methods.md 5; read in the paper's text, there is no released code)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dfqbench.api import Context
from dfqbench.synth import (
    BatchNormStatistics,
    FixedSource,
    bns_distance_loss,
    finite_source,
    is_large,
    optimize_batches,
)
from dfqbench_methods.dffg.plugin import save_points

if TYPE_CHECKING:
    from dfqbench_methods.dffg.plugin import DffgParams

SMALLEST_NORM = 1e-30
"""Lower bound of a gradient's norm: an image without a gradient does not move."""


def total_variation(images: Tensor) -> Tensor:
    """||right|| + ||down|| + ||diagonal|| + ||other diagonal||: norms (0-d) of the differences of all neighbours.

    Each is the Euclidean norm over the whole batch (N, C, H, W) (DeepInversion, released code).
    """
    pairs = (
        (images[..., 1:], images[..., :-1]),
        (images[..., 1:, :], images[..., :-1, :]),
        (images[..., 1:, 1:], images[..., :-1, :-1]),
        (images[..., 1:, :-1], images[..., :-1, 1:]),
    )
    return torch.stack([torch.linalg.vector_norm(a - b) for a, b in pairs]).sum()


def mean_norm(images: Tensor) -> Tensor:
    """1/N sum_i ||x_i||_2, 0-d, of images (N, C, H, W) (inferred: as DeepInversion)."""
    return torch.mean(torch.linalg.vector_norm(images, dim=(1, 2, 3)))


def accumulate(momentum: Tensor, gradient: Tensor, decay: float) -> Tensor:
    """G <- decay g + grad / ||grad||_1 in place, with the norm of each image; g and grad (N, C, H, W)."""
    size = gradient.abs().sum((1, 2, 3), keepdim=True).clamp_min(SMALLEST_NORM)
    return momentum.mul_(decay).addcdiv_(gradient, size)


class SignGradient:
    """The iteration of a batch of labelled images; an `ImageOptimizer`.

    Attributes:
        images: (N, C, H, W).
        labels: int64 (N,), constant.
        kept: the images at the save points passed so far.
    """

    def __init__(
        self, teacher: nn.Module, ctx: Context, params: DffgParams, recorder: BatchNormStatistics, count: int
    ) -> None:
        """Start from N(0, I) with uniformly drawn labels; `recorder` is the teacher's, entered."""
        random, shape = ctx.generator, (count, *ctx.card.input_size)
        self.images = torch.randn(shape, generator=random, device=random.device).to(memory_format=torch.channels_last)
        self.labels = torch.randint(ctx.card.classes, (count,), generator=random, device=random.device)
        self.kept: list[Tensor] = []
        limits = torch.tensor([ctx.card.lowest, ctx.card.highest], device=ctx.device)
        self._low, self._high = limits[..., None, None]
        self._teacher, self._autocast, self._params, self._recorder = teacher, ctx.autocast, params, recorder
        self._save_points = save_points(params.shares, ctx.budget.image_steps(params.iterations))
        self._step = 0
        self._momentum = torch.zeros_like(self.images)
        self._run_update = ctx.graphed(self._update)

    def step(self) -> Tensor:
        """Move the images, keep them at save points, and return the loss (0-d) before the step."""
        (loss,) = self._run_update()
        self._step += 1
        if self._step in self._save_points:
            self.kept.append(self.images.clone())
        return loss

    def _update(self) -> tuple[Tensor]:
        """X <- x - step sign(g)."""
        images = self.images.requires_grad_()
        loss = self._loss(images)
        (gradient,) = torch.autograd.grad(loss, images)
        self.images = images.detach()
        direction = accumulate(self._momentum, gradient, self._params.momentum).sign()
        self.images.sub_(direction, alpha=self._params.step)
        if self._params.clip:
            torch.clamp(self.images, self._low, self._high, out=self.images)
        return (loss.detach(),)

    def _loss(self, images: Tensor) -> Tensor:
        """L_BNS + a_tv TV + a_l2 l2 + b CE(P(x), y) (Eq. 6)."""
        p = self._params
        with self._autocast():
            logits = self._teacher(images)
        return (
            p.bns_weight * bns_distance_loss(self._recorder.last, p.norm, p.eps)
            + p.tv_weight * total_variation(images)
            + p.l2_weight * mean_norm(images)
            + p.ce_weight * F.cross_entropy(logits.float(), self.labels)
        )

    def state_dict(self) -> dict[str, Any]:
        """Return images, labels, momentum, kept images and the step."""
        tensors = {"images": self.images, "labels": self.labels, "momentum": self._momentum}
        return {**tensors, "kept": self.kept, "step": self._step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.images.copy_(state["images"])
        self.labels.copy_(state["labels"])
        self._momentum.copy_(state["momentum"])
        self.kept, self._step = [kept.to(self.images.device) for kept in state["kept"]], state["step"]


def synthesize(teacher: nn.Module, ctx: Context, params: DffgParams) -> FixedSource:
    """Iterate as many chains as `params.images` needs.

    Returns:
        The last iterates of all chains, then those kept before, latest first, cut to `params.images`; with each
        chain's label and the teacher's logits.

    Raises:
        NonFiniteError: an image is not finite at the end.
    """
    kept = len(save_points(params.shares, ctx.budget.image_steps(params.iterations)))
    with BatchNormStatistics(teacher) as recorder:
        batches = optimize_batches(
            ctx,
            lambda count: SignGradient(teacher, ctx, params, recorder, count),
            lambda chains: [chains.labels, *chains.kept],
            count=-(-params.images // kept),
            batch=params.batch_large if is_large(ctx.card.input_size) else params.batch,
            iterations=params.iterations,
        )
    labels = torch.cat([tensors[0] for tensors in batches]).repeat(kept)
    parts = [tensors[1 + point] for point in reversed(range(kept)) for tensors in batches]
    with torch.no_grad():
        logits = torch.cat([teacher(images) for images in parts])
    images, logits, labels = (tensor[: params.images] for tensor in (torch.cat(parts), logits, labels))
    return finite_source(images, logits, "dffg", labels)
