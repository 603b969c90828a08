"""Methods that go wrong while they run, each in its own way."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from dfqbench.api import Context, Fidelity, Method, Offer, Requires, SampleSource, hookimpl

if TYPE_CHECKING:
    from torch import nn


class _Base(Method):
    title = "Goes wrong"
    paper = "none"
    fidelity = Fidelity.RECONSTRUCTION
    requires = Requires(batchnorm=False)

    def images(self, ctx: Context) -> Any:
        import torch

        from dfqbench.synth.source import FixedSource

        return FixedSource(torch.randn((64, *ctx.card.input_size), generator=ctx.generator))


class Raises(_Base):
    """Raises at step 7."""

    name = "raises"

    def synthesize(self, teacher: nn.Module, ctx: Context) -> SampleSource:
        for step in range(1, 8):
            ctx.progress(step, 100)
        raise RuntimeError("the plugin's own mistake")


class Diverges(_Base):
    """Its loss is NaN from step 13 on."""

    name = "diverges"

    def synthesize(self, teacher: nn.Module, ctx: Context) -> SampleSource:
        import torch

        for step in range(1, 101):
            ctx.progress(step, 100, loss=torch.tensor(1.0 if step < 13 else float("nan")))
        return self.images(ctx)


class Exits(_Base):
    """Ends the process without a word."""

    name = "exits"

    def synthesize(self, teacher: nn.Module, ctx: Context) -> SampleSource:
        print("last words of the plugin", flush=True)  # noqa: T201 - must land in the log, not in the protocol
        os._exit(3)


class AsksForBits(_Base):
    """Looks at the scheme although it says that it does not."""

    name = "asks-for-bits"

    def synthesize(self, teacher: nn.Module, ctx: Context) -> SampleSource:
        ctx.scheme.label  # noqa: B018
        return self.images(ctx)


class OwnStudent(_Base):
    """Returns a module of its own instead of a prepared student."""

    name = "own-student"

    def synthesize(self, teacher: nn.Module, ctx: Context) -> SampleSource:
        return self.images(ctx)

    def quantize(self, teacher: nn.Module, source: SampleSource, ctx: Context) -> Any:
        import copy

        return copy.deepcopy(teacher)


@hookimpl
def dfqbench_methods() -> list[Offer]:
    kinds = (Raises, Diverges, Exits, AsksForBits, OwnStudent)
    return [Offer(kind.name, f":{kind.__name__}") for kind in kinds]
