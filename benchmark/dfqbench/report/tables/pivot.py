"""Pivots: the records that belong into one table, sorted into its rows and columns."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import itemgetter
from typing import Any

from dfqbench.api.errors import UsageError, unknown_name
from dfqbench.report.comparison.ranks import Place, Ranker, Ranking
from dfqbench.report.metrics import DEFAULT_METRICS, Metric, chosen_metrics
from dfqbench.report.record_access import control_rank, latest, model_name, newest_of, scheme_label
from dfqbench.report.tables.labels import marked_labels
from dfqbench.report.tables.origin import Origin, compared
from dfqbench.run.store.record import Record

DIMENSIONS = ("scheme", "method", "model", "bits", "protocol", "seed", "target", "budget")
"""What rows and columns can be made of; `bits` and `protocol` are the two halves of `scheme`."""
DEFAULT_ROWS = ("scheme", "method")
DEFAULT_COLUMNS = ("model",)
Key = tuple[tuple[Any, ...], ...]  # for each dimension a sort key, whose last element is the name


@dataclass(frozen=True, slots=True)
class Layout:
    """The shape of a table: dimensions of its rows and columns, and the metrics in each column."""

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    metrics: tuple[Metric, ...]

    @property
    def dimensions(self) -> frozenset[str]:
        """Dimensions of rows and columns."""
        return frozenset({*self.rows, *self.columns})

    @property
    def split_by(self) -> tuple[str, ...]:
        """Dimensions in neither rows nor columns; each of their values has a table of its own."""
        scheme = ("bits", "protocol") if self.dimensions & {"bits", "protocol"} else ("scheme",)
        return tuple(name for name in ("target", "budget", *scheme, "method", "model") if name not in self.dimensions)


def parse_layout(
    rows: Sequence[str] = DEFAULT_ROWS,
    columns: Sequence[str] = DEFAULT_COLUMNS,
    metrics: Sequence[str] = DEFAULT_METRICS,
) -> Layout:
    """Return the layout with these names.

    Raises:
        UsageError: a name is unknown or used twice, or rows or columns are empty.
    """
    names = [*rows, *columns]
    for name in names:
        if name not in DIMENSIONS:
            raise unknown_name("row or column", name, DIMENSIONS)
    if not rows or not columns:
        raise UsageError("a table needs rows and columns", f"choose from {', '.join(DIMENSIONS)}")
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"'{name}' stands for rows or columns twice", "name it once")
    if "scheme" in names and {"bits", "protocol"} & set(names):
        raise UsageError("'scheme' is bits and protocol together", "name either scheme, or bits and protocol")
    return Layout(tuple(rows), tuple(columns), chosen_metrics(metrics))


@dataclass(frozen=True, slots=True)
class Heading:
    """Names of one row or column by dimension, and whether it holds a control only."""

    names: Mapping[str, str]
    control: bool


@dataclass(frozen=True)
class Pivot:
    """Records that share every dimension in neither rows nor columns, except the seed."""

    layout: Layout
    shared: Mapping[str, str]  # names that all records have in common, by dimension
    records: tuple[Record, ...]  # the latest for every place and seed
    superseded: int  # older cells left out: same place and seed, other code or environment
    rows: tuple[Heading, ...]  # controls last in each block
    columns: tuple[Heading, ...]
    places: Mapping[Place, list[Record]]  # by position of row and column, in the order of seeds

    @cached_property
    def models(self) -> list[str]:
        """Names of the networks."""
        return sorted({model_name(record) for record in self.records})

    def block(self, row: int) -> tuple[str, ...]:
        """Return a row's names but the method's; rows of one block are compared."""
        return tuple(name for dimension, name in self.rows[row].names.items() if dimension != "method")

    @cached_property
    def compared(self) -> tuple[Origin, list[str]]:
        """What is the same in the origin of all students, and what differs."""
        return compared(self.records)

    def in_row(self, row: int) -> list[Record]:
        """Return the records of a row."""
        return [record for (at, _), records in sorted(self.places.items()) if at == row for record in records]

    @cached_property
    def rivals(self) -> list[list[Place]]:
        """Groups of places that differ in the method alone."""
        groups: dict[tuple[object, ...], list[Place]] = defaultdict(list)
        for row, column in self.places:
            names = (*self.rows[row].names.items(), *self.columns[column].names.items())
            groups[tuple(item for item in names if item[0] != "method")].append((row, column))
        return list(groups.values())

    @cached_property
    def rankings(self) -> list[Ranking]:
        """What the paired test says about each of these groups."""
        ranker = Ranker(self.places)
        return list(map(ranker.rank, self.rivals))


def pivots(records: Iterable[Record], layout: Layout) -> list[Pivot]:
    """Sort records into tables; only the latest attempt at each cell counts."""
    groups: dict[tuple[str, ...], list[Record]] = {}
    current = latest(records)
    # A cell that ended before its evaluation set was read belongs beside those of the same target and budget.
    for record in sorted(current, key=lambda record: record.dataset.n is None):
        key = _evaluation(record, layout)
        if record.dataset.n is None:
            key = next((group for group in groups if group[:2] == key[:2]), key)
        groups.setdefault(key, []).append(record)
    return [pivot for key in sorted(groups) for pivot in _split(groups[key], layout)]


def _evaluation(record: Record, layout: Layout) -> tuple[str, ...]:
    """Return what records in one table share besides the layout's own names."""
    data, by_target = record.dataset, "target" in layout.dimensions
    target = "" if by_target else record.target
    budget = "" if "budget" in layout.dimensions else record.budget
    dataset = ("", "", "") if by_target else (data.name, str(data.n or ""), data.subset or "")
    return target, budget, *dataset, record.precision


def _split(records: Sequence[Record], layout: Layout) -> list[Pivot]:
    labels = marked_labels(records)
    groups: dict[Key, list[Record]] = defaultdict(list)
    for record in records:
        groups[_key(record, layout.split_by, labels)].append(record)
    return [
        _pivot(group, _names(key, layout.split_by), layout, labels)
        for key, group in sorted(groups.items(), key=itemgetter(0))
    ]


def _pivot(records: Sequence[Record], shared: dict[str, str], layout: Layout, labels: Mapping[int, str]) -> Pivot:
    current = newest_of(
        records, key=lambda r: (labels[id(r)], model_name(r), scheme_label(r), r.target, r.budget, r.seed)
    )
    rows, in_rows = _headings(current, layout.rows, labels)
    columns, in_columns = _headings(current, layout.columns, labels)
    places: dict[tuple[int, int], list[Record]] = defaultdict(list)
    for record, row, column in sorted(zip(current, in_rows, in_columns, strict=True), key=lambda e: e[0].seed or 0):
        places[row, column].append(record)
    return Pivot(layout, shared, tuple(current), len(records) - len(current), rows, columns, dict(places))


def _headings(
    records: Sequence[Record], dimensions: Sequence[str], labels: Mapping[int, str]
) -> tuple[tuple[Heading, ...], list[int]]:
    """Return the rows or columns of some dimensions, in order, and the position of each record's."""
    keys = [_key(record, dimensions, labels) for record in records]
    controls = {
        key: "method" in dimensions and control_rank(record) > 0 for key, record in zip(keys, records, strict=True)
    }
    order = sorted(controls)
    positions = {key: position for position, key in enumerate(order)}
    return tuple(Heading(_names(key, dimensions), controls[key]) for key in order), [positions[key] for key in keys]


def _names(key: Key, dimensions: Sequence[str]) -> dict[str, str]:
    return {dimension: part[-1] for dimension, part in zip(dimensions, key, strict=True)}


def _key(record: Record, dimensions: Sequence[str], labels: Mapping[int, str]) -> Key:
    scheme = scheme_label(record)
    bits, _, protocol = scheme.partition("@")
    widths = (-(record.scheme.w_bits or 0), -(record.scheme.a_bits or 0))
    keys: dict[str, tuple[Any, ...]] = {
        "method": (control_rank(record), labels[id(record)]),
        "model": (model_name(record),),
        # A scheme with a budget stands beside the one without.
        "scheme": (protocol.partition(":")[0], *widths, scheme),
        "bits": (*widths, bits or "unknown"),
        "protocol": (protocol or record.scheme.protocol or "unknown",),
        "seed": (record.seed or 0, "unknown" if record.seed is None else str(record.seed)),
        "target": (record.target or "unknown",),
        "budget": (record.budget or "unknown",),
    }
    return tuple(keys[dimension] for dimension in dimensions)
