"""The pluggy contract between the host and its plugins: signatures and short docs only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pluggy

from dfqbench.api.method import PROJECT, FileOffer, Offer

ENTRY_POINTS = "dfqbench.methods"

hookspec = pluggy.HookspecMarker(PROJECT)


@hookspec
def dfqbench_methods() -> Iterable[Offer]:  # type: ignore[empty-body]
    """Methods: `load` names a subclass of `Method`."""


@hookspec
def dfqbench_quantizers() -> Iterable[Offer]:  # type: ignore[empty-body]
    """Shared quantizers: `load` names a subclass of `Quantizer`."""


@hookspec
def dfqbench_range_rules() -> Iterable[Offer]:  # type: ignore[empty-body]
    """Range rules: `load` names a subclass of `dfqbench.quant.Observer`."""


@hookspec
def dfqbench_models() -> Iterable[Offer]:  # type: ignore[empty-body]
    """Model families: `load` names a callable `(name, **kwargs) -> nn.Module`; users write `offer:name`."""


@hookspec
def dfqbench_targets() -> Iterable[FileOffer]:  # type: ignore[empty-body]
    """Data folders with a `targets.toml`; they come after the user's own."""


@hookspec
def dfqbench_grids() -> Iterable[FileOffer]:  # type: ignore[empty-body]
    """Grid files in TOML, run with `--grid NAME`."""


@hookspec
def dfqbench_claims() -> Iterable[FileOffer]:  # type: ignore[empty-body]
    """Numbers printed in papers: CSV files with the columns of the host's own (`report/literature/published.csv`)."""


@hookspec
def dfqbench_record_finished(record: Mapping[str, Any]) -> None:
    """A cell has ended, whatever its status; `record` is the one just written."""
