"""The pluggy hooks that a plugin can implement."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pluggy

from dfqbench.api.method import PROJECT, FileOffer, Offer

ENTRY_POINTS = "dfqbench.methods"

hookspec = pluggy.HookspecMarker(PROJECT)


@hookspec
def dfqbench_methods() -> Iterable[Offer]:  # type: ignore[empty-body]
    """Return offers of methods: `load` names a subclass of `Method`."""


@hookspec
def dfqbench_quantizers() -> Iterable[Offer]:  # type: ignore[empty-body]
    """Return offers of shared quantizers: `load` names a subclass of `Quantizer`."""


@hookspec
def dfqbench_range_rules() -> Iterable[Offer]:  # type: ignore[empty-body]
    """Return offers of range rules: `load` names a subclass of `dfqbench.quant.Observer`."""


@hookspec
def dfqbench_models() -> Iterable[Offer]:  # type: ignore[empty-body]
    """Return offers of model families: `load` names `(name, **kwargs) -> nn.Module`; users type `offer:name`.

    Parameters called `classes` and `in_channels` get the number of classes and of image channels of the target.
    """


@hookspec
def dfqbench_targets() -> Iterable[FileOffer]:  # type: ignore[empty-body]
    """Return data folders with a `targets.toml`; the user's own folders come first."""


@hookspec
def dfqbench_grids() -> Iterable[FileOffer]:  # type: ignore[empty-body]
    """Return grid files in TOML; users type `--grid NAME`."""


@hookspec
def dfqbench_claims() -> Iterable[FileOffer]:  # type: ignore[empty-body]
    """Return CSV files of numbers printed in papers, with the columns of `report/published.csv`."""


@hookspec
def dfqbench_progress(cell: Mapping[str, Any], phase: str, step: int, total: int, scalars: Mapping[str, float]) -> None:
    """Observe a step of a cell under way, every half second or less often; runs in the host's process.

    Args:
        cell: the keys of its record that say what is run: `cell_id`, `label`, `model`, `scheme`, `seed`, `params`, ...
        phase: `synthesis`, `quantization` or `evaluation`.
        step: of the phase, from 1.
        total: steps of the phase.
        scalars: losses and other numbers that the method reported, by name; often empty.
    """


@hookspec
def dfqbench_record_finished(record: Mapping[str, Any]) -> None:
    """Observe the record of a cell that has ended, whatever its status; a copy of the record just written."""
