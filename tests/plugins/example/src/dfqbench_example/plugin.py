"""The hooks: what this package offers. Free of torch, since listing methods imports it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dfqbench.api import FileOffer, Offer, hookimpl

API = 1
HERE = Path(__file__).parent
LOG = "DFQBENCH_EXAMPLE_LOG"
"""Environment variable that names a file to which a line a step and a finished record is appended."""


@hookimpl
def dfqbench_methods() -> list[Offer]:
    """One method."""
    return [Offer("stripes", "dfqbench_example.method:Stripes", api=API)]


@hookimpl
def dfqbench_quantizers() -> list[Offer]:
    """One quantizer, for `--methods zeroq+one-image`."""
    return [Offer("one-image", "dfqbench_example.quantizer:OneImage", api=API)]


@hookimpl
def dfqbench_models() -> list[Offer]:
    """One family of networks, for `--models plain:tiny`."""
    return [Offer("plain", "dfqbench_example.networks:build", api=API)]


@hookimpl
def dfqbench_targets() -> list[FileOffer]:
    """One data folder, with its `targets.toml`."""
    return [FileOffer("example", str(HERE / "data"), api=API)]


@hookimpl
def dfqbench_grids() -> list[FileOffer]:
    """One grid, for `--grid example`."""
    return [FileOffer("example", str(HERE / "example.toml"), api=API)]


@hookimpl
def dfqbench_claims() -> list[FileOffer]:
    """Numbers that were printed."""
    return [FileOffer("example", str(HERE / "claims.csv"), api=API)]


@hookimpl
def dfqbench_progress(cell: Mapping[str, Any], phase: str, step: int) -> None:
    """Appends method, phase and step of a cell under way to a file, where one is named."""
    _append(cell["method"], phase, step)


@hookimpl
def dfqbench_record_finished(record: Mapping[str, Any]) -> None:
    """Appends method and status of every finished cell to a file, where one is named."""
    _append(record["method"], record["status"])


def _append(*facts: object) -> None:
    if LOG in os.environ:
        with Path(os.environ[LOG]).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(facts) + "\n")
