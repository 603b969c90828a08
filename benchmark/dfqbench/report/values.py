"""Which records count, and values as people read them."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any

from dfqbench.run.store.record import Record

ABSENT = "-"
"""What a table shows where there is no value."""


def flattened(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested data with dotted keys; lists stay lists."""
    flat: dict[str, Any] = {}
    for key, entry in data.items():
        if isinstance(entry, Mapping):
            flat.update(flattened(entry, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = entry
    return flat


def latest(records: Iterable[Record]) -> list[Record]:
    """The latest attempt at each cell, in the order of first appearance.

    Attempts are numbered within a run; across runs the time decides. A record without a cell counts by itself.
    """
    newest: dict[object, Record] = {}
    for position, record in enumerate(records):
        key: object = (record.run, record.cell_id) if record.cell_id else position
        known = newest.get(key)
        if known is None or (record.attempt, _when(record)) >= (known.attempt, _when(known)):
            newest[key] = record
    return newest_of(newest.values(), key=lambda record: record.cell_id or id(record))


def newest_of(records: Iterable[Record], key: Callable[[Record], Hashable]) -> list[Record]:
    """The last finished record for each key, in the order of first appearance."""
    newest: dict[Hashable, Record] = {}
    for record in records:
        place = key(record)
        known = newest.get(place)
        if known is None or _when(record) >= _when(known):
            newest[place] = record
    return list(newest.values())


def _when(record: Record) -> str:
    return record.finished_at or record.started_at


def plain(data: Any) -> Any:
    """The data with every NaN and infinity replaced by None: what JSON can hold."""
    if isinstance(data, Mapping):
        return {str(key): plain(entry) for key, entry in data.items()}
    if isinstance(data, list | tuple):
        return [plain(entry) for entry in data]
    if isinstance(data, float) and not math.isfinite(data):
        return None
    return data


def duration(seconds: float | None) -> str:
    """A time for people: `0.52 s`, `12.3 s`, `4.2 min`, `1.3 h`."""
    if seconds is None:
        return ABSENT
    if seconds < 1:
        return f"{seconds:.2f} s"
    # The bounds lie half a printed digit below the round number, so that nothing reads `60.0 min`.
    if seconds < 99.95:
        return f"{seconds:.1f} s"
    if seconds < 99.95 * 60:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"


def spread(numbers: Iterable[float | None], digits: int = 2) -> str:
    """One number, or `low to high` where several differ when printed; `-` for none."""
    known = sorted(entry for entry in numbers if entry is not None)
    if not known:
        return ABSENT
    low, high = (f"{entry:.{digits}f}" for entry in (known[0], known[-1]))
    return low if low == high else f"{low} to {high}"
