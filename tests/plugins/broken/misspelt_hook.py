"""Marks a function that is no hook."""

from __future__ import annotations

from dfqbench.api import Offer, hookimpl


@hookimpl
def dfqbench_method() -> list[Offer]:
    return []
