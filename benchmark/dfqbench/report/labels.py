"""Labels: what a record's method, network and scheme are called in tables."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence

from dfqbench.report.status import control_rank
from dfqbench.report.values import flattened, plain
from dfqbench.run.store.record import Record

_MARKS = {0: "", 1: " (control)", 2: " (floor)", 3: " (ceiling)"}


def model_name(record: Record) -> str:
    """The model's name; a missing model has no reference."""
    return record.model.name or record.model.ref or "unknown"


def scheme_label(record: Record) -> str:
    """The scheme's label."""
    return record.scheme.label or "unknown"


def short_names(models: Iterable[str]) -> dict[str, str]:
    """Model names without their family, where that stays unique."""
    full = list(models)
    short = [model.partition(":")[2] or model for model in full]
    return {model: name if short.count(name) == 1 else model for model, name in zip(full, short, strict=True)}


def labels(records: Sequence[Record]) -> dict[int, str]:
    """The method's label of every record, by the record's `id`.

    Parameters are part of it only where a method was run with several values of them.
    """
    quantizers: dict[str, set[str]] = {}
    for record in records:
        quantizers.setdefault(record.method, set()).add(record.quantizer)
    written = _Written()
    names = {}
    params: dict[str, dict[str, set[str]]] = {}
    counted: set[tuple[str, int]] = set()
    for record in records:
        name = record.label or _name(record, several=len(quantizers[record.method] - {""}) > 1)
        names[id(record)] = name
        entries = written(record)
        if (name, id(entries)) in counted:
            continue
        counted.add((name, id(entries)))
        for param, entry in entries.items():
            params.setdefault(name, {}).setdefault(param, set()).add(entry)
    varied = {name: {param for param, seen in known.items() if len(seen) > 1} for name, known in params.items()}
    return {id(record): _label(record, names[id(record)], varied, written) for record in records}


def _label(record: Record, name: str, varied: Mapping[str, set[str]], written: _Written) -> str:
    entries = written(record) if varied.get(name) else {}
    chosen = [
        f"{param.removeprefix('method.')}={entry}" for param, entry in entries.items() if param in varied.get(name, ())
    ]
    variant = f" [{', '.join(chosen)}]" if chosen else ""
    return f"{name}{variant}{_MARKS[control_rank(record)]}"


class _Written:
    """Parameters as text; records mostly share a few sets of them, which are written once."""

    def __init__(self) -> None:
        self._known: dict[str, dict[str, str]] = {}

    def __call__(self, record: Record) -> dict[str, str]:
        key = repr(record.params)
        if key not in self._known:
            self._known[key] = {param: _as_json(entry) for param, entry in flattened(record.params).items()}
        return self._known[key]


def _name(record: Record, *, several: bool) -> str:
    """The method's label where the record does not hold one."""
    method = record.method or "unknown"
    return f"{method}+{record.quantizer}" if several and record.quantizer else method


def _as_json(entry: object) -> str:
    return json.dumps(plain(entry), sort_keys=True, default=str)
