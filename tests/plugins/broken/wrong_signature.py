"""Asks a hook for an argument that the hook does not have."""

from __future__ import annotations

from dfqbench.api import Offer, hookimpl


@hookimpl
def dfqbench_methods(config: object) -> list[Offer]:
    return []
