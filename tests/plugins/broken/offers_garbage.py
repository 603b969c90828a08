"""Offers a class instead of an `Offer`."""

from __future__ import annotations

from typing import Any

from dfqbench.api import hookimpl


@hookimpl
def dfqbench_methods() -> Any:
    return [dict]
