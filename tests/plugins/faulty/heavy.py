"""Imports torch at the top, so that listing methods takes seconds."""

from __future__ import annotations

import torch

from dfqbench.api import Context, Fidelity, Method, Offer, Requires, SampleSource, hookimpl


class Heavy(Method):
    """Fine otherwise."""

    name = "heavy"
    title = "Heavy"
    paper = "an example of dfqbench's tests"
    fidelity = Fidelity.RECONSTRUCTION
    requires = Requires(batchnorm=False)

    def synthesize(self, teacher: torch.nn.Module, ctx: Context) -> SampleSource:
        from dfqbench.synth import FixedSource

        return FixedSource(torch.randn((8, *ctx.card.input_size), generator=ctx.generator))


@hookimpl
def dfqbench_methods() -> list[Offer]:
    return [Offer("heavy", ":Heavy")]
