"""The image loop: batches of images are optimized one after another and become a fixed source."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from dfqbench.api import Context, NonFiniteError
from dfqbench.synth.lr_plateau import DevicePlateau
from dfqbench.synth.source import FixedSource


class ImageOptimizer(Protocol):
    """Optimizes one batch of images."""

    @property
    def images(self) -> Tensor:
        """The present images (N, C, H, W)."""

    def step(self) -> Tensor:
        """Update the images once and return the loss (0-d) before the update."""

    def state_dict(self) -> dict[str, Any]:
        """Return all state of the next steps."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""


Optimizer = TypeVar("Optimizer", bound=ImageOptimizer)


def optimize_batches(
    ctx: Context,
    start: Callable[[int], Optimizer],
    finish: Callable[[Optimizer], list[Tensor]],
    *,
    count: int,
    batch: int,
    iterations: int,
) -> list[list[Tensor]]:
    """Optimize `count` images, in as few batches as `batch` allows, with progress and checkpoints.

    Args:
        ctx: the host's side of the cell.
        start: makes the optimizer of a batch of that many images; random numbers come from `ctx.generator`.
        finish: returns the tensors to keep of an optimized batch.
        count: images in all.
        batch: most images optimized together; batches differ by at most one image.
        iterations: published updates of each batch, before the budget.

    Returns:
        The kept tensors of each batch.
    """
    steps = ctx.budget.image_steps(iterations)
    runs = -(-count // batch)
    sizes = [count * (run + 1) // runs - count * run // runs for run in range(runs)]
    restored = ctx.restored
    done: list[list[Tensor]] = []
    if restored is not None:
        done = [[tensor.to(ctx.device) for tensor in tensors] for tensors in restored["done"]]
    for index in range(len(done), len(sizes)):
        current, first = start(sizes[index]), 0
        if restored is not None:
            # `start` has drawn random numbers: set the generators back; reading the state does that for the host's.
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
        done.append(finish(current))
    return done


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
    """Optimize images as `optimize_batches` does, and return them in order, with the teacher's logits.

    Raises:
        NonFiniteError: an image of method `what` is not finite at the end.
    """
    batches = optimize_batches(
        ctx, start, lambda current: [current.images.detach()], count=count, batch=batch, iterations=iterations
    )
    with torch.no_grad():
        logits = [teacher(images) for (images,) in batches]
    return finite_source(torch.cat([images for (images,) in batches]), torch.cat(logits), what)


def finite_source(images: Tensor, teacher_logits: Tensor, what: str, labels: Tensor | None = None) -> FixedSource:
    """Return a source of the images of method `what`, with their labels where it has any.

    Raises:
        NonFiniteError: an image is not finite.
    """
    if not bool(torch.isfinite(images).all()):
        raise NonFiniteError(f"{what} image")
    return FixedSource(images, labels, teacher_logits)


class AdamOnPlateau:
    """An `ImageOptimizer` by Adam, whose learning rate falls where the loss stops falling.

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
            factor: as of `DevicePlateau`.
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
        """Update the images, then the learning rate."""
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
