"""Seeds a global generator while it is imported: the caller's random numbers are no longer the caller's."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from dfqbench.api import Context, Fidelity, Method, Offer, Requires, SampleSource, hookimpl

if TYPE_CHECKING:
    from torch import nn

random.seed(0)


class SeedsOnImport(Method):
    """Fine otherwise."""

    name = "seeds-on-import"
    title = "Seeds on import"
    paper = "an example of dfqbench's tests"
    fidelity = Fidelity.RECONSTRUCTION
    requires = Requires(batchnorm=False)

    def synthesize(self, teacher: nn.Module, ctx: Context) -> SampleSource:
        import torch

        from dfqbench.synth import FixedSource

        return FixedSource(torch.randn((8, *ctx.card.input_size), generator=ctx.generator))


@hookimpl
def dfqbench_methods() -> list[Offer]:
    return [Offer("seeds-on-import", ":SeedsOnImport")]
