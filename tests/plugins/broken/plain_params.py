"""Has parameters that are no dataclass."""

from __future__ import annotations

from typing import Any

from dfqbench.api import Fidelity, Method, Offer, hookimpl


class PlainParams(Method):
    name = "plain_params"
    title = "Plain parameters"
    paper = "an example of dfqbench's tests"
    fidelity = Fidelity.RECONSTRUCTION
    params_type = object

    def synthesize(self, *_: Any) -> Any: ...


@hookimpl
def dfqbench_methods() -> list[Offer]:
    return [Offer("plain_params", ":PlainParams")]
