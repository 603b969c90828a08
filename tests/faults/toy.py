"""A method for the harness: `synthesize` and `quantize` take a few short steps, with a checkpoint at each."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from dfqbench.api import Context, Fidelity, Method, Offer, Requires, SampleSource, hookimpl

if TYPE_CHECKING:
    from torch import Tensor, nn

STEPS = 6


def iterate(phase: str, ctx: Context, value: Tensor, update: Callable[[Tensor], Tensor]) -> Tensor:
    """Update a value `STEPS` times, with a checkpoint and an audit event for the harness after each."""
    state = ctx.restored or {"done": 0, "value": value}
    value = state["value"]
    for step in range(state["done"] + 1, STEPS + 1):
        value = update(value)
        ctx.progress(step, STEPS)
        ctx.checkpoint(partial(dict, done=step, value=value))
        sys.audit("toy.step", f"{phase}:{step}")
    return value


class Toy(Method):
    name = "toy"
    title = "Toy of the fault harness"
    paper = "none"
    fidelity = Fidelity.RECONSTRUCTION
    requires = Requires(batchnorm=False)

    def synthesize(self, teacher: nn.Module, ctx: Context) -> SampleSource:
        import torch

        from dfqbench.synth.source import FixedSource

        def drift(images: Tensor) -> Tensor:
            return 0.8 * images + torch.randn(images.shape, generator=ctx.generator) + torch.randn(images.shape)

        return FixedSource(iterate("synthesis", ctx, torch.zeros(64, *ctx.card.input_size), drift))

    def quantize(self, teacher: nn.Module, source: SampleSource, ctx: Context) -> Any:
        import torch

        from dfqbench.synth.source import FixedSource

        def drift(scale: Tensor) -> Tensor:
            return scale * (1 + 0.1 * torch.rand((), generator=ctx.generator))

        scale = iterate("quantization", ctx, torch.ones(()), drift)
        return ctx.shared_quantize(teacher, FixedSource(source.sample(64).images * scale))


@hookimpl
def dfqbench_methods() -> list[Offer]:
    return [Offer(Toy.name, f":{Toy.__name__}")]
