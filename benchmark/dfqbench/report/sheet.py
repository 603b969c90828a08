"""Sheets: the records that belong into one table, sorted into rows (scheme, method) and columns (models)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dfqbench.report.values import Record, flattened, latest, newest_of, number, plain, text, value

FLOOR, CEILING = "noise", "real"
"""Names of the two controls."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row: a method under a scheme.

    Attributes:
        scheme: the scheme's label.
        label: the method as shown.
        cells: its records by model.
    """

    scheme: str
    label: str
    cells: dict[str, list[Record]]


@dataclass(frozen=True, slots=True)
class Sheet:
    """Records that share target, evaluation set, budget and precision.

    Attributes:
        records: the latest record for every place and seed.
        superseded: number of older cells left out (same place and seed, other code or environment).
        models: names, in the order of the columns.
        rows: in order; controls last in each scheme.
    """

    records: tuple[Record, ...]
    superseded: int
    models: tuple[str, ...]
    rows: tuple[Row, ...]


def sheets(records: Iterable[Record]) -> list[Sheet]:
    """Sorts records into sheets; only the latest attempt at each cell counts."""
    groups: dict[tuple[str, ...], list[Record]] = {}
    homeless = []
    for record in latest(records):
        if number(record, "dataset.n") is not None:
            groups.setdefault(_group(record), []).append(record)
        else:
            homeless.append(record)
    # A cell that ended before its evaluation set was read belongs beside those of the same target and budget.
    for record in homeless:
        near = (group for group in groups if (group[0], group[3]) == (_group(record)[0], _group(record)[3]))
        groups.setdefault(next(near, _group(record)), []).append(record)
    return [_sheet(groups[group]) for group in sorted(groups)]


def _group(record: Record) -> tuple[str, ...]:
    keys = ("target", "dataset.name", "dataset.n", "budget", "precision")
    return tuple(text(record, key) for key in keys)


def model_name(record: Record) -> str:
    """The model's name (a missing model has no reference), also where an older record holds it as plain text."""
    found = value(record, "model")
    if isinstance(found, str):
        return found
    return text(record, "model.name") or text(record, "model.ref", "unknown")


def scheme_label(record: Record) -> str:
    """The scheme's label, also where an older record holds it as plain text."""
    found = value(record, "scheme")
    return found if isinstance(found, str) else text(record, "scheme.label", "unknown")


def _sheet(records: Sequence[Record]) -> Sheet:
    labels = _labels(records)
    rows: dict[tuple[str, str], Row] = {}
    current = newest_of(
        records,
        key=lambda record: (labels[id(record)], model_name(record), scheme_label(record), text(record, "seed")),
    )
    for record in current:
        scheme, label = scheme_label(record), labels[id(record)]
        row = rows.setdefault((scheme, label), Row(scheme, label, {}))
        row.cells.setdefault(model_name(record), []).append(record)
    for row in rows.values():
        for cell in row.cells.values():
            cell.sort(key=lambda record: number(record, "seed") or 0.0)
    ordered = sorted(rows.values(), key=_row_order)
    models = tuple(sorted({model for row in ordered for model in row.cells}))
    return Sheet(tuple(current), len(records) - len(current), models, tuple(ordered))


def _row_order(row: Row) -> tuple[object, ...]:
    first = next(iter(row.cells.values()))[0]
    _, _, protocol = row.scheme.partition("@")
    bits = (-(number(first, "scheme.w_bits") or 0.0), -(number(first, "scheme.a_bits") or 0.0))
    return protocol, *bits, row.scheme, _control_rank(first), row.label


def _control_rank(record: Record) -> int:
    """0 for a competitor; controls come after, the floor first."""
    method = text(record, "method")
    if method == CEILING:
        return 3
    if method == FLOOR:
        return 2
    return int(value(record, "control") is True)


def _labels(records: Sequence[Record]) -> dict[int, str]:
    """The row label of every record, by the record's `id`.

    Parameters are part of it only where a method was run with several values of them.
    """
    quantizers: dict[str, set[str]] = {}
    for record in records:
        quantizers.setdefault(text(record, "method"), set()).add(text(record, "quantizer"))
    names = {}
    params: dict[str, dict[str, set[str]]] = {}
    for record in records:
        name = text(record, "label") or _name(record, several=len(quantizers[text(record, "method")] - {""}) > 1)
        names[id(record)] = name
        for param, entry in _params(record).items():
            params.setdefault(name, {}).setdefault(param, set()).add(_written(entry))
    labels = {}
    for record in records:
        name = names[id(record)]
        varied = [
            f"{param.removeprefix('method.')}={_written(entry)}"
            for param, entry in _params(record).items()
            if len(params[name][param]) > 1
        ]
        mark = {0: "", 1: " (control)", 2: " (floor)", 3: " (ceiling)"}[_control_rank(record)]
        variant = f" [{', '.join(varied)}]" if varied else ""
        labels[id(record)] = f"{name}{variant}{mark}"
    return labels


def _name(record: Record, *, several: bool) -> str:
    """The method's label where the record does not hold one."""
    method, quantizer = text(record, "method", "unknown"), text(record, "quantizer")
    return f"{method}+{quantizer}" if several and quantizer else method


def _params(record: Record) -> Mapping[str, Any]:
    params = value(record, "params")
    return flattened(params) if isinstance(params, Mapping) else {}


def _written(entry: object) -> str:
    return json.dumps(plain(entry), sort_keys=True, default=str)
