"""Reading records: which ones count, and the words for status, method and network."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any

from dfqbench.quant.scheme import PROTOCOLS
from dfqbench.run.store.record import Record
from dfqbench.run.store.record_parts import Error
from dfqbench.run.store.status import MEASURED, SHARED

COLLAPSED = "collapsed"  # status of a measured student that guesses: a result, but never the best
NOISE, REAL = "noise", "real"  # the two controls that every benchmark offers
_STATUS_WORDS = {"oom": "out of memory", "timeout": "time limit"}
_SELF_EXPLAINING = frozenset(
    {"Invalid", "Collapsed", "Timeout", "Preempted", "WorkerDied", "Unavailable", "Skip", "PluginError", "UsageError"}
    | {"InputError", "NonFiniteError", "DfqError"}
)
"""Error types whose message is enough; others are shown with their type."""


def finished(record: Record) -> bool:
    """Return whether the record's numbers count."""
    return record.status in MEASURED and record.top1 is not None


def shared_by_all(records: Iterable[Record]) -> frozenset[str]:
    """Return the flags of shared hardware that every finished record has: the caption tells them, no footnote."""
    flags = [frozenset(record.flags) for record in records if finished(record)]
    return frozenset(SHARED).intersection(*flags) if flags else frozenset()


def control_rank(record: Record) -> int:
    """Return 0 for a competitor; else the place among controls: 1 for a plugin's, 2 for `noise`, 3 for `real`."""
    return {NOISE: 2, REAL: 3}.get(record.method, int(record.control))


def competes(record: Record) -> bool:
    """Return whether the record's numbers may be marked as the best."""
    return finished(record) and not control_rank(record) and record.status != COLLAPSED


def status_word(record: Record) -> str:
    """Return what a table shows instead of a number."""
    status = record.status or "failed"
    return "no result" if status in MEASURED else _STATUS_WORDS.get(status, status)


def reason(record: Record) -> str:
    """Return on one line why there is no number, or none that counts."""
    error = record.error or Error()
    text = " ".join(error.message.split())
    if error.type and error.type not in _SELF_EXPLAINING and error.type.lower() != record.status:
        text = f"{error.type}: {text}" if text else error.type
    text = text or ", ".join(record.flags) or "no reason recorded"
    return f"{text} (in {error.phase})" if error.phase else text


def model_name(record: Record) -> str:
    """Return the model's name, or its reference where the record holds no name."""
    return record.model.name or record.model.ref or "unknown"


def short_names(models: Iterable[str]) -> dict[str, str]:
    """Return model names without their family, where that stays unique."""
    full = list(models)
    short = [model.partition(":")[2] or model for model in full]
    return {model: name if short.count(name) == 1 else model for model, name in zip(full, short, strict=True)}


def range_rule(record: Record) -> str:
    """Return the range rule of a record, or of its parameters where it is an older one; empty: not known."""
    quantizer = record.params.get("quantizer") or {}
    return record.range or ("" if record.own_quantize else str(quantizer.get("range_rule") or ""))


def scheme_label(record: Record) -> str:
    """Return the scheme's label, such as `w4a4@gdfq`.

    Where the protocol's name meant something else, its version follows, such as `w4a4@deploy (version 1)`.
    """
    scheme = record.scheme
    now = PROTOCOLS.get(scheme.protocol or scheme.label.partition("@")[2])
    version = scheme.details.get("version", 1)
    earlier = "" if now is None or version == now.version else f" (version {version})"
    return f"{scheme.label or 'unknown'}{earlier}"


def latest(records: Iterable[Record]) -> list[Record]:
    """Return the latest attempt at each cell, in the order of first appearance.

    Attempts are numbered within a run; across runs the time decides. Records without a cell are all kept.
    """
    newest: dict[object, Record] = {}
    for position, record in enumerate(records):
        key: object = (record.run, record.cell_id) if record.cell_id else position
        known = newest.get(key)
        if known is None or (record.attempt, _time(record)) >= (known.attempt, _time(known)):
            newest[key] = record
    return newest_of(newest.values(), key=lambda record: record.cell_id or id(record))


def newest_of(records: Iterable[Record], key: Callable[[Record], Hashable]) -> list[Record]:
    """Return the record that finished last for each key, in the order of first appearance."""
    newest: dict[Hashable, Record] = {}
    for record in records:
        group = key(record)
        known = newest.get(group)
        if known is None or _time(record) >= _time(known):
            newest[group] = record
    return list(newest.values())


def _time(record: Record) -> str:
    return record.finished_at or record.started_at


def flattened(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested data with dotted keys; lists stay lists."""
    flat: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, Mapping):
            flat |= flattened(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def json_ready(data: Any) -> Any:
    """Return the data with every NaN and infinity replaced by None, which JSON can hold."""
    if isinstance(data, Mapping):
        return {str(key): json_ready(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [json_ready(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data
