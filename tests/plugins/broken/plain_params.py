"""Has parameters that are no dataclass."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dfqbench.api import Context, Fidelity, Method, Offer, SampleSource, hookimpl

if TYPE_CHECKING:
    from torch import nn


class Params:
    steps = 10


class PlainParams(Method):
    name = "plain_params"
    title = "Plain parameters"
    paper = "an example of dfqbench's tests"
    fidelity = Fidelity.RECONSTRUCTION
    params_type = Params

    def synthesize(self, teacher: nn.Module, ctx: Context) -> SampleSource:
        raise NotImplementedError


@hookimpl
def dfqbench_methods() -> list[Offer]:
    return [Offer("plain_params", ":PlainParams")]
