"""DFFG's iteration (methods.md 5; the concept is the abstract's, every constant inferred)."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dfqbench.api import Context, NonFiniteError
from dfqbench.synth import (
    BatchNormStatistics,
    FixedSource,
    Moments,
    PassStatistics,
    bns_loss,
    positions,
    sample_moments,
    unbiased,
    zeroq_loss,
)

if TYPE_CHECKING:
    from dfqbench_methods.dffg.plugin import DffgParams

SMALLEST_NORM = 1e-30
"""Lower limit of a gradient's norm, so that an image that fits perfectly stays where it is."""


def accumulate(momentum: Tensor, gradient: Tensor, decay: float) -> Tensor:
    """Direction g <- decay g + grad / ||grad||_1, the norm taken for each image (MI-FGSM).

    Args:
        momentum: g (N, C, H, W), changed in place.
        gradient: grad (N, C, H, W).
        decay: of the old direction.

    Returns:
        g.
    """
    size = gradient.abs().sum((1, 2, 3), keepdim=True).clamp_min(SMALLEST_NORM)
    return momentum.mul_(decay).addcdiv_(gradient, size)


def step_size(step: int, steps: int, first: float, last: float) -> float:
    """Cosine from `first` at step 0 to `last` at the last step.

    Args:
        step: from 0.
        steps: number of steps.
        first: size of the first step.
        last: size of the last step.
    """
    progress = step / max(1, steps - 1)
    return last + (first - last) * 0.5 * (1 + math.cos(math.pi * progress))


class _Domain:
    """The input space: target statistics and limits, as tensors that broadcast over images."""

    def __init__(self, ctx: Context, params: DffgParams) -> None:
        card = ctx.card
        stats = card.input_stats

        def channels(values: tuple[float, ...]) -> Tensor:
            return torch.tensor(values, device=ctx.device).view(-1, 1, 1)

        released = params.input_target == "released"
        self.mean = torch.zeros_like(channels(stats.mean)) if released else channels(stats.mean)
        self.std = torch.ones_like(channels(stats.std)) if released else channels(stats.std)
        self.low, self.high = channels(card.lowest), channels(card.highest)
        self.target = Moments(self.mean.flatten(), self.std.flatten().square())


class _Chains:
    """Images on their way, with their momentum and the iterates kept so far."""

    def __init__(self, images: Tensor) -> None:
        self.images = images.to(memory_format=torch.channels_last)
        self.momentum = torch.zeros_like(self.images)
        self.kept: list[tuple[Tensor, Tensor]] = []

    def keep(self, images: Tensor, logits: Tensor) -> None:
        """Keeps images with the teacher's logits."""
        self.kept.append((images.clone(), logits.detach()))

    def state_dict(self) -> dict[str, Any]:
        return {"images": self.images, "momentum": self.momentum, "kept": [list(pair) for pair in self.kept]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.images.copy_(state["images"])
        self.momentum.copy_(state["momentum"])
        self.kept = [(pair[0], pair[1]) for pair in state["kept"]]


class _Iteration:
    """The update of one batch of chains."""

    def __init__(self, teacher: nn.Module, ctx: Context, params: DffgParams, steps: int) -> None:
        self._teacher = teacher
        self._autocast = ctx.autocast
        self._params = params
        self._domain = _Domain(ctx, params)
        self._random = ctx.generator
        self._steps = steps
        self._sizes: Tensor | None = None
        self._graphed = ctx.graphed

    def start(self, shape: tuple[int, ...], watch: BatchNormStatistics) -> _Chains:
        """Noise of natural images' mean and deviation."""
        noise = torch.randn(shape, generator=self._random, device=self._random.device)
        chains = _Chains(noise * self._domain.std + self._domain.mean)
        self._run_step = self._graphed(partial(self._move, chains, watch), generators=[self._random])
        return chains

    def update(self, chains: _Chains, step: int, *, keep: bool) -> Tensor:
        """One step of every chain; keeps the images of before it where asked. Returns the loss (0-d)."""
        before = chains.images.clone() if keep else None
        size = step_size(step, self._steps, self._params.step, self._params.last_step)
        loss, logits = self._run_step(size)
        if before is not None:
            chains.keep(before, logits)
        return loss

    def _move(self, chains: _Chains, watch: BatchNormStatistics, size: float | Tensor) -> tuple[Tensor, Tensor]:
        """Move the images by a step of this size; return the loss and the logits of before."""
        images = chains.images.requires_grad_()
        with self._autocast():
            logits = self._teacher(images)
        loss = self._loss(watch.last, images)
        (gradient,) = torch.autograd.grad(loss, images)
        chains.images = images.detach()
        if self._params.variability == "pixel":
            noise = torch.randn(gradient.shape, generator=self._random, device=self._random.device)
            gradient = gradient * noise.mul_(self._params.pixel_noise).add_(1)
        direction = accumulate(chains.momentum, gradient, self._params.momentum).sign()
        if isinstance(size, Tensor):
            moved = chains.images.addcmul_(direction, self._domain.std * -size)
        else:
            moved = chains.images.addcmul_(direction, self._domain.std, value=-size)
        torch.minimum(torch.maximum(moved, self._domain.low, out=moved), self._domain.high, out=moved)
        return loss, logits.float()

    def _loss(self, statistics: PassStatistics, images: Tensor) -> Tensor:
        if self._params.statistics == "batch":
            return bns_loss(statistics)
        image = unbiased(sample_moments(images), positions(images))
        weights = self._layer_weights(statistics, len(images)) if self._params.variability == "layers" else None
        return zeroq_loss(statistics, image, self._domain.target, self._params.eps, weights)

    def _layer_weights(self, statistics: PassStatistics, count: int) -> Tensor:
        """(N, S): 0 for the layers that are dropped from an image's loss, 1 for the others."""
        sizes = [layer.running.mean.shape[0] for layer in statistics.layers]
        drawn = torch.rand((count, len(sizes)), generator=self._random, device=self._random.device)
        kept = (drawn >= self._params.layer_drop).to(torch.float32)
        if self._sizes is None:
            self._sizes = torch.tensor(sizes, device=kept.device)
        return kept.repeat_interleave(self._sizes, 1, output_size=sum(sizes))


def synthesize(teacher: nn.Module, ctx: Context, params: DffgParams) -> FixedSource:
    """Iterates `params.chains` images, `params.batch` at a time.

    Returns:
        The last iterates of all chains, then those kept on the way, latest first; with the teacher's logits.

    Raises:
        NonFiniteError: an image is not finite at the end.
    """
    steps = ctx.budget.image_steps(params.iterations)
    keep = {round(share * steps) for share in params.keep} - {0, steps}
    sizes = [min(params.batch, params.chains - start) for start in range(0, params.chains, params.batch)]
    iteration = _Iteration(teacher, ctx, params, steps)
    restored = dict(ctx.restored or {"done": [], "step": 0, "current": None, "random": ctx.generator.get_state()})
    done: list[_Chains] = []
    for state in restored["done"]:
        done.append(_Chains(torch.empty_like(state["images"])))
        done[-1].load_state_dict(state)
    first = int(restored["step"])
    with BatchNormStatistics(teacher) as watch:
        for index in range(len(done), len(sizes)):
            chains = iteration.start((sizes[index], *ctx.card.input_size), watch)
            if restored["current"] is not None:
                chains.load_state_dict(restored["current"])
                restored["current"] = None
                ctx.generator.set_state(restored["random"].cpu())
            for step in range(first, steps):
                loss = iteration.update(chains, step, keep=step in keep)
                ctx.progress(index * steps + step + 1, len(sizes) * steps, loss=loss)
                ctx.checkpoint(lambda step=step, chains=chains: _state(ctx, done, chains, step + 1))  # type: ignore[misc]
            first = 0
            done.append(chains)
    for chains in done:
        with torch.no_grad():
            chains.keep(chains.images, teacher(chains.images))
    return _gather(done)


def _state(ctx: Context, done: list[_Chains], chains: _Chains, step: int) -> dict[str, Any]:
    return {
        "done": [finished.state_dict() for finished in done],
        "step": step,
        "current": chains.state_dict(),
        "random": ctx.generator.get_state(),
    }


def _gather(done: list[_Chains]) -> FixedSource:
    moments = reversed(range(len(done[0].kept)))
    pairs = [chains.kept[moment] for moment in moments for chains in done]
    images = torch.cat([images for images, _ in pairs])
    if not bool(torch.isfinite(images).all()):
        raise NonFiniteError("dffg image")
    return FixedSource(images, teacher_logits=torch.cat([logits for _, logits in pairs]))
