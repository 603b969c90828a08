"""ZeroQ's distillation of images (methods.md 1; read in the released code of amirgholami/ZeroQ)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dfqbench.api import Context, InputStats, NonFiniteError
from dfqbench.synth import (
    BatchNormStatistics,
    DevicePlateau,
    FixedSource,
    Moments,
    positions,
    sample_moments,
    unbiased,
    zeroq_loss,
)

if TYPE_CHECKING:
    from dfqbench_methods.zeroq.plugin import ZeroQParams

UNIFORM_VARIANCE = 5418.75
"""Variance of U(-128, 127), by which the released code divides (methods.md 1a)."""


def initial_noise(shape: tuple[int, ...], variant: str, generator: torch.Generator) -> Tensor:
    """U{0..254} - 127.5, scaled.

    Args:
        shape: of the images.
        variant: `released` divides by the variance 5418.75, `intended` by its root.
        generator: source of randomness; its device is the result's.

    Returns:
        float32 noise within +-0.0235 or +-1.732.
    """
    pixels = torch.randint(0, 255, shape, generator=generator, device=generator.device, dtype=torch.float32)
    divisor = UNIFORM_VARIANCE if variant == "released" else UNIFORM_VARIANCE**0.5
    return (pixels - 127.5) / divisor


class _Distillation:
    """One batch of images on its way: pixels, optimizer and learning rate."""

    def __init__(self, images: Tensor, ctx: Context, params: ZeroQParams, loss: Callable[[Tensor], Tensor]) -> None:
        self.step = ctx.graphed(self._step)
        self._loss = loss
        self.images = images.to(memory_format=torch.channels_last).requires_grad_()
        self.plateau = DevicePlateau(
            torch.tensor(params.lr, device=images.device),
            factor=params.plateau_factor,
            patience=params.plateau_patience,
            min_lr=params.min_lr,
        )
        self.optimizer = torch.optim.Adam(
            [self.images], lr=self.plateau.lr, fused=True, capturable=self.step.capturable
        )

    def _step(self) -> tuple[Tensor]:
        """Move the images down the loss, then update the learning rate."""
        loss = self._loss(self.images)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.plateau.step(loss)
        return (loss,)

    def state_dict(self) -> dict[str, Any]:
        return {
            "images": self.images.detach(),
            "optimizer": self.optimizer.state_dict()["state"],
            "plateau": self.plateau.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        with torch.no_grad():
            self.images.copy_(state["images"])
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state["optimizer"], "param_groups": groups})
        self.optimizer.param_groups[0]["lr"] = self.plateau.lr
        self.plateau.load_state_dict(state["plateau"])


def synthesize(teacher: nn.Module, ctx: Context, params: ZeroQParams) -> FixedSource:
    """Distills `params.images` images, `params.batch` at a time.

    Raises:
        NonFiniteError: an image is not finite at the end.
    """
    card, device = ctx.card, ctx.device
    channels = card.input_size[0]
    stats = InputStats((0.0,) * channels, (1.0,) * channels) if params.input_target == "released" else card.input_stats
    mean, std = torch.tensor(stats.mean, device=device), torch.tensor(stats.std, device=device)
    target = Moments(mean, std.square())
    iterations = ctx.budget.image_steps(params.iterations)
    sizes = [min(params.batch, params.images - start) for start in range(0, params.images, params.batch)]
    restored = ctx.restored or {"done": [], "step": 0, "noise": ctx.generator.get_state(), "current": None}
    done: list[Tensor] = [images.to(device) for images in restored["done"]]
    ctx.generator.set_state(restored["noise"].cpu())

    with BatchNormStatistics(teacher) as watch:

        def image_loss(images: Tensor) -> Tensor:
            with ctx.autocast():
                teacher(images)
            return zeroq_loss(watch.last, unbiased(sample_moments(images), positions(images)), target, params.eps)

        for index in range(len(done), len(sizes)):
            before = ctx.generator.get_state()
            noise = initial_noise((sizes[index], *card.input_size), params.init, ctx.generator)
            current = _Distillation(noise * std.view(-1, 1, 1) + mean.view(-1, 1, 1), ctx, params, image_loss)
            first = 0
            if index == len(restored["done"]) and restored["current"] is not None:
                current.load_state_dict(restored["current"])
                first = restored["step"]
            for step in range(first, iterations):
                (loss,) = current.step()
                ctx.progress(index * iterations + step + 1, len(sizes) * iterations, loss=loss)
                ctx.checkpoint(
                    lambda current=current, step=step, before=before: {  # type: ignore[misc]
                        "done": done,
                        "step": step + 1,
                        "noise": before,
                        "current": current.state_dict(),
                    }
                )
            done.append(current.images.detach())
    images = torch.cat(done)
    if not bool(torch.isfinite(images).all()):
        raise NonFiniteError("zeroq image")
    with torch.no_grad():
        logits = torch.cat([teacher(batch) for batch in done])
    return FixedSource(images, teacher_logits=logits)
