"""Methods that are interrupted in every way that a checkpoint must stand."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dfqbench.api import Batch, Context, Fidelity, Method, Offer, Requires, SampleSource, hookimpl, param

if TYPE_CHECKING:
    from torch import Tensor, nn

STEPS = 30


def noise(shape: tuple[int, ...], generator: Any = None) -> Tensor:
    import torch

    return torch.randn(shape, generator=generator)


class _Base(Method):
    title = "For tests of resuming"
    paper = "none"
    fidelity = Fidelity.RECONSTRUCTION
    requires = Requires(batchnorm=False)

    def synthesize(self, teacher: nn.Module, ctx: Context) -> SampleSource:
        from dfqbench.synth.source import FixedSource

        return FixedSource(self.drift(ctx, (64, *ctx.card.input_size)))

    def drift(self, ctx: Context, shape: tuple[int, ...]) -> Tensor:
        state = ctx.restored or {"done": 0, "images": noise(shape, ctx.generator)}
        images = state["images"]
        for step in range(state["done"] + 1, STEPS + 1):
            images = 0.9 * images + noise(shape, ctx.generator) + self.chance(shape)
            ctx.progress(step, STEPS)
            self.keep(ctx, {"done": step, "images": images})
        return images

    def chance(self, shape: tuple[int, ...]) -> Any:
        return 0

    def keep(self, ctx: Context, state: dict[str, Any]) -> None:
        ctx.checkpoint(lambda: state)


class CountsOnChance(_Base):
    name = "counts-on-chance"

    def chance(self, shape: tuple[int, ...]) -> Any:
        import numpy as np

        return noise(shape) + random.random() + float(np.random.rand())  # noqa: S311


class SlowSteps(_Base):
    name = "slow-steps"

    def keep(self, ctx: Context, state: dict[str, Any]) -> None:
        time.sleep(0.3)
        super().keep(ctx, state)


@dataclass(frozen=True)
class PeekParams:
    path: str = param("", help="file", source="a test")


class PeeksEarly(_Base):
    """Opens a file before its loop, and not again when it is resumed."""

    name = "peeks-early"
    params_type = PeekParams
    params: PeekParams

    def drift(self, ctx: Context, shape: tuple[int, ...]) -> Tensor:
        if ctx.restored is None and self.params.path:
            Path(self.params.path).read_bytes()
        return super().drift(ctx, shape)


class KeepsNothing(_Base):
    name = "keeps-nothing"

    def keep(self, ctx: Context, state: dict[str, Any]) -> None: ...


class OddState(_Base):
    name = "odd-state"

    def keep(self, ctx: Context, state: dict[str, Any]) -> None:
        super().keep(ctx, state | {"thing": object()})


class _Drifting:
    """A live source that has taken steps of its own before it is returned."""

    batch_size = 16
    training_steps = 10

    def __init__(self, mean: Tensor, ctx: Context) -> None:
        import torch

        self._mean = mean
        self._random = torch.Generator().manual_seed(ctx.seed("drift"))

    def sample(self, size: int) -> Batch:
        import torch

        return Batch(self._mean + noise((size, *self._mean.shape), torch.Generator().manual_seed(1)))

    def train_step(self, size: int, student: nn.Module | None = None) -> Batch:
        batch = Batch(self._mean + noise((size, *self._mean.shape), self._random))
        self._mean = 0.99 * self._mean + 0.01 * batch.images.mean(0)
        return batch

    def state_dict(self) -> dict[str, Any]:
        return {"mean": self._mean, "random": self._random.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._mean = state["mean"]
        self._random.set_state(state["random"])


class LearnsTwice(_Base):
    name = "learns-twice"
    quantizer = "distill:gdfq"

    def synthesize(self, teacher: nn.Module, ctx: Context) -> SampleSource:
        return _Drifting(self.drift(ctx, ctx.card.input_size), ctx)


class _Shaken:
    """Images that move by random numbers, the context's and the global ones; an `ImageOptimizer`."""

    def __init__(self, ctx: Context, count: int) -> None:
        self._random = ctx.generator
        self.images = self._noise((count, *ctx.card.input_size))

    def _noise(self, shape: tuple[int, ...]) -> Tensor:
        return noise(shape, self._random) + noise(shape)

    def step(self) -> Tensor:
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
    return [Offer(cls.name, f":{cls.__name__}") for cls in _Base.__subclasses__()]
