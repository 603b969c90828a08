"""Was written for a version of the plugin interface that is gone."""

from __future__ import annotations

from dfqbench.api import API_VERSION, Offer, hookimpl


@hookimpl
def dfqbench_methods() -> list[Offer]:
    return [Offer("past", ":Past", api=API_VERSION - 1)]
