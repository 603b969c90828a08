"""Methods that are interrupted in every way that a checkpoint must stand."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dfqbench.api import Batch, Context, Fidelity, Method, Offer, Requires, SampleSource, hookimpl, param

if TYPE_CHECKING:
    from torch import nn

STEPS = 30


class _Base(Method):
    title = "For tests of resuming"
    paper = "none"
    fidelity = Fidelity.RECONSTRUCTION
    requires = Requires(batchnorm=False)

    def state(self, done: int, images: Any) -> dict[str, Any]:
        return {"done": done, "images": images}

    def begin(self, ctx: Context) -> None:
        """Before the loop of a fresh attempt."""

    def synthesize(self, teacher: nn.Module, ctx: Context) -> SampleSource:
        import torch

        from dfqbench.synth.source import FixedSource

        images, first = torch.zeros(64, *ctx.card.input_size), 0
        if ctx.restored is None:
            self.begin(ctx)
        else:
            images, first = ctx.restored["images"], ctx.restored["done"]
        for step in range(first, STEPS):
            images = 0.9 * images + torch.randn(images.shape, generator=ctx.generator) + self.chance(images)
            ctx.progress(step + 1, STEPS)
            self.keep(ctx, step + 1, images)
        return FixedSource(images)

    def chance(self, images: Any) -> Any:
        return 0

    def keep(self, ctx: Context, done: int, images: Any) -> None:
        ctx.checkpoint(lambda: self.state(done, images))


class CountsOnChance(_Base):
    """Draws from every global generator at every step."""

    name = "counts-on-chance"

    def chance(self, images: Any) -> Any:
        import numpy as np
        import torch

        return torch.randn(images.shape) + random.random() + float(np.random.rand())  # noqa: S311


@dataclass(frozen=True)
class PeekParams:
    """Where to look."""

    path: str = param("", help="file", source="a test")


class PeeksEarly(_Base):
    """Opens a file before its loop, and not again when it is resumed."""

    name = "peeks-early"
    params_type = PeekParams
    params: PeekParams

    def begin(self, ctx: Context) -> None:
        from pathlib import Path

        if self.params.path:
            Path(self.params.path).read_bytes()


class KeepsNothing(_Base):
    """Never offers a state."""

    name = "keeps-nothing"

    def keep(self, ctx: Context, done: int, images: Any) -> None:
        pass


class OddState(_Base):
    """Its state holds an object."""

    name = "odd-state"

    def state(self, done: int, images: Any) -> dict[str, Any]:
        return super().state(done, images) | {"thing": object()}


class _Drifting:
    """A live source whose start took steps of its own."""

    def __init__(self, mean: Any, ctx: Context) -> None:
        import torch

        self._mean = mean
        self._random = torch.Generator().manual_seed(ctx.seed("drift"))

    def sample(self, size: int) -> Batch:
        import torch

        return Batch(self._mean + torch.randn((size, *self._mean.shape), generator=torch.Generator().manual_seed(1)))

    def train_step(self, size: int, student: nn.Module | None = None) -> Batch:
        import torch

        batch = Batch(self._mean + torch.randn((size, *self._mean.shape), generator=self._random))
        self._mean = 0.99 * self._mean + 0.01 * batch.images.mean(0)
        return batch

    def state_dict(self) -> dict[str, Any]:
        return {"mean": self._mean, "random": self._random.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._mean = state["mean"]
        self._random.set_state(state["random"])


class LearnsTwice(Method):
    """A live source with a long start: both phases are resumed."""

    name = "learns-twice"
    title = "For tests of resuming"
    paper = "none"
    fidelity = Fidelity.RECONSTRUCTION
    requires = Requires(batchnorm=False)
    quantizer = "distill:gdfq"

    def synthesize(self, teacher: nn.Module, ctx: Context) -> SampleSource:
        import torch

        state = ctx.restored or {"done": 0, "mean": torch.zeros(ctx.card.input_size)}
        mean = state["mean"]
        for step in range(state["done"], STEPS):
            mean = 0.9 * mean + torch.randn(mean.shape, generator=ctx.generator)
            ctx.progress(step + 1, STEPS)
            ctx.checkpoint(lambda step=step, mean=mean: {"done": step + 1, "mean": mean})
        return _Drifting(mean, ctx)


class _Shaken:
    """Images that move by random numbers, the context's and the global ones; an `ImageOptimizer`."""

    def __init__(self, ctx: Context, count: int) -> None:
        self._random = ctx.generator
        self.images = self._noise((count, *ctx.card.input_size))

    def _noise(self, shape: tuple[int, ...]) -> Any:
        import torch

        return torch.randn(shape, generator=self._random) + torch.randn(shape)

    def step(self) -> Any:
        self.images = 0.9 * self.images + self._noise(self.images.shape)
        return self.images.mean()

    def state_dict(self) -> dict[str, Any]:
        return {"images": self.images}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.images = state["images"]


class ShakesImages(_Base):
    """Draws in the steps of the image loop, and not only where a batch begins."""

    name = "shakes-images"

    def synthesize(self, teacher: nn.Module, ctx: Context) -> SampleSource:
        from dfqbench.synth import optimize_images

        return optimize_images(
            teacher, ctx, lambda count: _Shaken(ctx, count), count=64, batch=32, iterations=STEPS * 25, what="shaken"
        )


@hookimpl
def dfqbench_methods() -> list[Offer]:
    kinds = (CountsOnChance, PeeksEarly, KeepsNothing, OddState, LearnsTwice, ShakesImages)
    return [Offer(kind.name, f":{kind.__name__}") for kind in kinds]
