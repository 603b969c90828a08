"""Sheets: the records that belong into one table, sorted into its rows and columns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from dfqbench.report.labels import labels, model_name, scheme_label
from dfqbench.report.layout import Layout
from dfqbench.report.status import control_rank
from dfqbench.report.values import latest, newest_of
from dfqbench.run.store.record import Record


@dataclass(frozen=True, slots=True)
class Line:
    """One row or one column of a sheet.

    Attributes:
        names: by dimension.
        order: its place among the others.
        control: whether it holds a control only.
    """

    names: Mapping[str, str]
    order: tuple[object, ...]
    control: bool


@dataclass(frozen=True)
class Sheet:
    """Records that share everything that is neither in rows nor in columns (but seeds).

    Attributes:
        layout: what makes rows and columns.
        shared: what all records have in common, by dimension.
        records: the latest record for every place and seed.
        superseded: number of older cells left out (same place and seed, other code or environment).
        rows: in order; controls last in each block.
        columns: in order.
        places: records by position of row and column.
    """

    layout: Layout
    shared: Mapping[str, str]
    records: tuple[Record, ...]
    superseded: int
    rows: tuple[Line, ...]
    columns: tuple[Line, ...]
    places: Mapping[tuple[int, int], list[Record]]

    @cached_property
    def models(self) -> list[str]:
        """Names of the networks."""
        return sorted({model_name(record) for record in self.records})

    def block(self, row: int) -> tuple[str, ...]:
        """What a row has in common with those that it is compared with: its names but the method's."""
        return tuple(name for dimension, name in self.rows[row].names.items() if dimension != "method")

    def rivals(self) -> list[list[tuple[int, int]]]:
        """Places that differ in the method alone."""
        groups: dict[tuple[object, ...], list[tuple[int, int]]] = {}
        for row, column in self.places:
            both = (self.rows[row].names, self.columns[column].names)
            key = tuple((d, n) for names in both for d, n in names.items() if d != "method")
            groups.setdefault(key, []).append((row, column))
        return list(groups.values())


def sheets(records: Iterable[Record], layout: Layout) -> list[Sheet]:
    """Sorts records into sheets; only the latest attempt at each cell counts."""
    groups: dict[tuple[str, ...], list[Record]] = {}
    homeless = []
    current = latest(records)
    for record in current:
        if record.dataset.n is not None:
            groups.setdefault(_evaluated(record, layout), []).append(record)
        else:
            homeless.append(record)
    # A cell that ended before its evaluation set was read belongs beside those of the same target and budget.
    for record in homeless:
        mine = _evaluated(record, layout)
        near = (group for group in groups if group[:2] == mine[:2])
        groups.setdefault(next(near, mine), []).append(record)
    found = []
    for key in sorted(groups):
        found += _pages(groups[key], layout)
    return found


def _evaluated(record: Record, layout: Layout) -> tuple[str, ...]:
    """What records in one table must share besides the layout's own names."""
    used = {*layout.rows, *layout.columns}
    data = record.dataset
    target = "" if "target" in used else record.target
    budget = "" if "budget" in used else record.budget
    dataset = ("", "", "") if "target" in used else (data.name, str(data.n or ""), data.subset or "")
    return target, budget, *dataset, record.precision


def _pages(records: Sequence[Record], layout: Layout) -> list[Sheet]:
    shown = labels(records)
    pages: dict[tuple[object, ...], tuple[dict[str, str], list[Record]]] = {}
    for record in records:
        key = _orders(record, layout.pages, shown)
        if key not in pages:
            pages[key] = ({name: _name(record, name, shown) for name in layout.pages}, [])
        pages[key][1].append(record)
    return [
        _sheet(page, names, layout, shown) for _, (names, page) in sorted(pages.items(), key=lambda entry: entry[0])
    ]


def _sheet(records: Sequence[Record], shared: dict[str, str], layout: Layout, shown: Mapping[int, str]) -> Sheet:
    current = newest_of(
        records,
        key=lambda record: (
            shown[id(record)],
            model_name(record),
            scheme_label(record),
            record.target,
            record.budget,
            record.seed,
        ),
    )
    (rows, in_rows), (columns, in_columns) = (_lines(current, names, shown) for names in (layout.rows, layout.columns))
    places: dict[tuple[int, int], list[Record]] = {}
    for record, row, column in zip(current, in_rows, in_columns, strict=True):
        places.setdefault((row, column), []).append(record)
    for place in places.values():
        place.sort(key=lambda record: record.seed or 0)
    return Sheet(layout, shared, tuple(current), len(records) - len(current), rows, columns, places)


def _lines(
    records: Sequence[Record], dimensions: Sequence[str], shown: Mapping[int, str]
) -> tuple[tuple[Line, ...], list[int]]:
    """The lines that some dimensions make of records, in order, and the position of each record's."""
    found: dict[tuple[object, ...], Line] = {}
    orders = [_orders(record, dimensions, shown) for record in records]
    for record, order in zip(records, orders, strict=True):
        if order not in found:
            names = {name: _name(record, name, shown) for name in dimensions}
            found[order] = Line(names, order, "method" in dimensions and control_rank(record) > 0)
    lines = tuple(sorted(found.values(), key=lambda line: line.order))
    places = {line.order: place for place, line in enumerate(lines)}
    return lines, [places[order] for order in orders]


def _orders(record: Record, dimensions: Sequence[str], shown: Mapping[int, str]) -> tuple[object, ...]:
    return tuple(_order(record, name, shown) for name in dimensions)


def _protocol(record: Record) -> str:
    return scheme_label(record).partition("@")[2] or record.scheme.protocol


_NAMES: Mapping[str, Callable[[Record], str]] = {
    "model": model_name,
    "scheme": scheme_label,
    "bits": lambda record: scheme_label(record).partition("@")[0],
    "protocol": _protocol,
    "seed": lambda record: "" if record.seed is None else str(record.seed),
    "target": lambda record: record.target,
    "budget": lambda record: record.budget,
}


def _name(record: Record, dimension: str, shown: Mapping[int, str]) -> str:
    return shown[id(record)] if dimension == "method" else _NAMES[dimension](record) or "unknown"


def _order(record: Record, dimension: str, shown: Mapping[int, str]) -> tuple[object, ...]:
    """A sort key that is the same for the same name only."""
    name = _name(record, dimension, shown)
    match dimension:
        case "method":
            return control_rank(record), name
        case "scheme":
            return scheme_label(record).partition("@")[2], *_bits(record), name
        case "bits":
            return *_bits(record), name
        case "seed":
            return record.seed or 0, name
    return (name,)


def _bits(record: Record) -> tuple[int, int]:
    return -(record.scheme.w_bits or 0), -(record.scheme.a_bits or 0)
