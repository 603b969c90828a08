"""The image loop: batches of images are optimized one after another and become a fixed source."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from dfqbench.api import Context, NonFiniteError
from dfqbench.synth.schedule import DevicePlateau
from dfqbench.synth.source import FixedSource


class ImageOptimizer(Protocol):
    """Optimizes one batch of images."""

    @property
    def images(self) -> Tensor:
        """The images (N, C, H, W) as they are now."""

    def step(self) -> Tensor:
        """Update the images once and return the loss (0-d) of before the update."""

    def state_dict(self) -> dict[str, Any]:
        """Return the images and everything else that the next steps depend on."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""


def optimize_images(
    teacher: nn.Module,
    ctx: Context,
    start: Callable[[int], ImageOptimizer],
    *,
    count: int,
    batch: int,
    iterations: int,
    what: str,
) -> FixedSource:
    """Optimize `count` images, `batch` at a time, with progress and checkpoints.

    Args:
        teacher: full-precision network, in eval mode.
        ctx: the host's side of the cell.
        start: makes the optimizer of a batch of that many images; random numbers come from `ctx.generator`.
        count: images in all.
        batch: images optimized together.
        iterations: published updates of each batch, before the budget.
        what: name of the method, for errors.

    Returns:
        The images in the order in which they were made, with the teacher's logits.

    Raises:
        NonFiniteError: an image is not finite at the end.
    """
    steps = ctx.budget.image_steps(iterations)
    sizes = [min(batch, count - first) for first in range(0, count, batch)]
    restored = ctx.restored
    done: list[Tensor] = [] if restored is None else [images.to(ctx.device) for images in restored["done"]]
    for index in range(len(done), len(sizes)):
        current, first = start(sizes[index]), 0
        if restored is not None:
            # The start has drawn random numbers: set the generators back, the host's by reading the state again.
            restored = ctx.restored or restored
            ctx.generator.set_state(restored["random"].cpu())
            current.load_state_dict(restored["current"])
            first, restored = restored["step"], None
        for step in range(first, steps):
            loss = current.step()
            ctx.progress(index * steps + step + 1, len(sizes) * steps, loss=loss)
            ctx.checkpoint(
                lambda current=current, step=step: {  # type: ignore[misc]
                    "done": done,
                    "step": step + 1,
                    "random": ctx.generator.get_state(),
                    "current": current.state_dict(),
                }
            )
        done.append(current.images.detach())
    images = torch.cat(done)
    if not bool(torch.isfinite(images).all()):
        raise NonFiniteError(f"{what} image")
    with torch.no_grad():
        logits = torch.cat([teacher(part) for part in done])
    return FixedSource(images, teacher_logits=logits)


class AdamOnPlateau:
    """Optimizes images by Adam; the learning rate falls where the loss stops falling. Implements `ImageOptimizer`.

    Attributes:
        images: (N, C, H, W), channels-last.
    """

    def __init__(
        self,
        ctx: Context,
        images: Tensor,
        loss: Callable[[Tensor], Tensor],
        *,
        lr: float,
        factor: float,
        patience: int,
        min_lr: float,
    ) -> None:
        """Build the optimizer.

        Args:
            ctx: the host's side of the cell.
            images: initial images (N, C, H, W).
            loss: the loss (0-d) of the images; reads no value from the device.
            lr: initial learning rate.
            factor: as of `torch.optim.lr_scheduler.ReduceLROnPlateau`.
            patience: as there.
            min_lr: as there.
        """
        self.images = images.to(memory_format=torch.channels_last).requires_grad_()
        self._loss = loss
        self._run_update = ctx.graphed(self._update)
        self._plateau = DevicePlateau(
            torch.tensor(lr, device=images.device), factor=factor, patience=patience, min_lr=min_lr
        )
        self._optimizer = torch.optim.Adam(
            [self.images], lr=self._plateau.lr, fused=True, capturable=self._run_update.capturable
        )

    def step(self) -> Tensor:
        """Move the images down the loss, then let the learning rate follow it."""
        return self._run_update()[0]

    def _update(self) -> tuple[Tensor]:
        loss = self._loss(self.images)
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        self._plateau.step(loss)
        return (loss,)

    def state_dict(self) -> dict[str, Any]:
        """Return images, optimizer and learning rate."""
        return {
            "images": self.images.detach(),
            "optimizer": self._optimizer.state_dict()["state"],
            "plateau": self._plateau.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        with torch.no_grad():
            self.images.copy_(state["images"])
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": state["optimizer"], "param_groups": groups})
        self._optimizer.param_groups[0]["lr"] = self._plateau.lr
        self._plateau.load_state_dict(state["plateau"])
        self._run_update.reset()
