"""Offers a method under a built-in's name, and a second one whose name is free."""

from __future__ import annotations

from dfqbench.api import Offer, hookimpl


@hookimpl
def dfqbench_methods() -> list[Offer]:
    return [Offer("free_name", ":Free"), Offer("zeroq", ":ZeroQ")]
