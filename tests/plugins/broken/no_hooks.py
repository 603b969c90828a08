"""Has no hook: the decorator was forgotten."""

from __future__ import annotations

from dfqbench.api import Offer


def dfqbench_methods() -> list[Offer]:
    return []
