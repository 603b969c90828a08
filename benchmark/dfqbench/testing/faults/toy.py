"""A method for the harness: both halves take a few short steps, with a state at each."""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING, Any

from dfqbench.api import Context, Fidelity, Method, Offer, Requires, SampleSource, hookimpl

if TYPE_CHECKING:
    from torch import nn

STEPS = 6


def reach(point: str) -> None:
    """Tells the harness, where it listens, which step is done."""
    listener = sys.modules.get("sitecustomize")
    if listener is not None and hasattr(listener, "reach"):
        listener.reach(point)


class Toy(Method):
    """Random images that drift for some steps, then a scale that does."""

    name = "toy"
    title = "Toy of the fault harness"
    paper = "none"
    fidelity = Fidelity.RECONSTRUCTION
    requires = Requires(batchnorm=False)

    def synthesize(self, teacher: nn.Module, ctx: Context) -> SampleSource:  # noqa: ARG002 - the contract's signature
        """Images, drifting by chance drawn from the context's and the global generators."""
        import torch

        from dfqbench.synth.source import FixedSource

        state = ctx.restored or {"done": 0, "images": torch.zeros(64, *ctx.card.input_size)}
        images = state["images"]
        for step in range(state["done"], STEPS):
            images = 0.8 * images + torch.randn(images.shape, generator=ctx.generator) + torch.randn(images.shape)
            ctx.progress(step + 1, STEPS)
            ctx.checkpoint(partial(dict, done=step + 1, images=images))
            reach(f"synthesis:{step + 1}")
        return FixedSource(images)

    def quantize(self, teacher: nn.Module, source: SampleSource, ctx: Context) -> Any:
        """Calibration on scaled images."""
        import torch

        from dfqbench.synth.source import FixedSource

        state = ctx.restored or {"done": 0, "scale": torch.ones(())}
        scale = state["scale"]
        for step in range(state["done"], STEPS):
            scale = scale * (1 + 0.1 * torch.rand((), generator=ctx.generator))
            ctx.progress(step + 1, STEPS)
            ctx.checkpoint(partial(dict, done=step + 1, scale=scale))
            reach(f"quantization:{step + 1}")
        return ctx.shared_quantize(teacher, FixedSource(source.sample(64).images * scale))


@hookimpl
def dfqbench_methods() -> list[Offer]:
    """Offers the method."""
    return [Offer(Toy.name, f":{Toy.__name__}")]
