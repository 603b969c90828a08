"""Fails when it is asked what it offers."""

from __future__ import annotations

from dfqbench.api import Offer, hookimpl


@hookimpl
def dfqbench_methods() -> list[Offer]:
    return [{}["offer"]]
