"""Values of records: reading them where keys may be missing, and printing them for people."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Record = Mapping[str, Any]

ABSENT = "-"
"""What a table shows where there is no value."""


def value(record: Record, key: str) -> Any:
    """The value at a dotted key; None where a part of it is missing, or the value is NaN."""
    found: Any = record
    for part in key.split(".") if "." in key else (key,):
        # Tables read millions of values, nearly all from plain dicts; the abstract check is slow.
        if type(found) is not dict and not isinstance(found, Mapping):
            return None
        found = found.get(part)
    return None if isinstance(found, float) and math.isnan(found) else found


def number(record: Record, key: str) -> float | None:
    """The finite number at a dotted key, else None."""
    found = value(record, key)
    if isinstance(found, bool) or not isinstance(found, int | float) or not math.isfinite(found):
        return None
    return float(found)


def text(record: Record, key: str, default: str = "") -> str:
    """The text at a dotted key; `default` where it is missing or empty."""
    found = value(record, key)
    return default if found is None or found == "" else str(found)


def items(record: Record, key: str) -> list[Any]:
    """The list at a dotted key; empty where it is missing or no list."""
    found = value(record, key)
    return list(found) if isinstance(found, Sequence) and not isinstance(found, str) else []


def flattened(data: Record, prefix: str = "") -> dict[str, Any]:
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
        cell = text(record, "cell_id")
        key: object = (text(record, "run"), cell) if cell else position
        known = newest.get(key)
        if known is None or _attempt(record) >= _attempt(known):
            newest[key] = record
    return newest_of(newest.values(), key=lambda record: text(record, "cell_id") or id(record))


def newest_of(records: Iterable[Record], key: Any) -> list[Record]:
    """The last finished record for each key, in the order of first appearance."""
    newest: dict[object, Record] = {}
    for record in records:
        known = newest.get(key(record))
        if known is None or _when(record) >= _when(known):
            newest[key(record)] = record
    return list(newest.values())


def _attempt(record: Record) -> tuple[float, str]:
    return number(record, "attempt") or 0.0, _when(record)


def _when(record: Record) -> str:
    return text(record, "finished_at") or text(record, "started_at")


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


def standard_error(top1: float, images: float | None) -> float | None:
    """Binomial standard error sqrt(p (1 - p) / n) of a top-1, in percentage points; None where n is not known.

    Args:
        top1: percent.
        images: n.
    """
    if not images or not 0 <= top1 <= 100:
        return None
    return math.sqrt(top1 * (100 - top1) / images)


def spread(numbers: Iterable[float | None], digits: int = 2) -> str:
    """One number, or `low to high` where several differ when printed; `-` for none."""
    known = sorted(entry for entry in numbers if entry is not None)
    if not known:
        return ABSENT
    low, high = (f"{entry:.{digits}f}" for entry in (known[0], known[-1]))
    return low if low == high else f"{low} to {high}"
