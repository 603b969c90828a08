"""Names a class that is not there."""

from __future__ import annotations

from dfqbench.api import Offer, hookimpl


@hookimpl
def dfqbench_methods() -> list[Offer]:
    return [Offer("unresolved", "unresolved_load:Missing")]
