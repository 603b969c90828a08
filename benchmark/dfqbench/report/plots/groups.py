"""Groups: the finished records that one plot compares, with means and deviations over seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from dfqbench.report.record_access import finished, model_name, scheme_label, short_names
from dfqbench.report.tables.pivot import Layout, Pivot, pivots
from dfqbench.run.evaluate.accuracy import standard_error
from dfqbench.run.store.record import Record

BY_BITS = Layout(("method",), ("bits",), ())
BY_SCHEME = Layout(("method",), ("scheme",), ())


@dataclass(frozen=True, slots=True)
class Method:
    """One method in a group."""

    label: str  # as in tables
    control: bool
    places: tuple[list[Record], ...]  # finished records for each of the group's columns


@dataclass(frozen=True, slots=True)
class Group:
    """What one plot compares: one network on one target with one budget (and one protocol)."""

    title: str
    columns: tuple[str, ...]
    methods: tuple[Method, ...]  # controls last
    full: float | None  # full-precision top-1 in percent


def groups(records: Iterable[Record], layout: Layout) -> list[Group]:
    """Group finished records; a group without any is left out."""
    compared = pivots(records, layout)
    titles = [_title(pivot) for pivot in compared]
    made = [
        _group(pivot, title if titles.count(title) == 1 else f"{title}, {_images_and_precision(pivot)}")
        for pivot, title in zip(compared, titles, strict=True)
    ]
    return [group for group in made if group.methods]


def _group(pivot: Pivot, title: str) -> Group:
    places = {place: good for place, records in pivot.places.items() if (good := list(filter(finished, records)))}
    rows, columns = sorted({row for row, _ in places}), sorted({column for _, column in places})
    methods = tuple(
        Method(
            pivot.rows[row].names["method"],
            pivot.rows[row].control,
            tuple(places.get((row, column), []) for column in columns),
        )
        for row in rows
    )
    names = tuple(next(iter(pivot.columns[column].names.values())) for column in columns)
    known = [record.fp_top1 for record in filter(finished, pivot.records) if record.fp_top1 is not None]
    return Group(title, names, methods, statistics.fmean(known) if known else None)


def _title(pivot: Pivot) -> str:
    record = pivot.records[0]
    model = model_name(record)
    parts = [record.target or "unknown", short_names([model])[model]]
    if "protocol" in pivot.layout.split_by:
        parts.append("@" + scheme_label(record).partition("@")[2])
    return ", ".join([*parts, f"budget {record.budget or 'unknown'}"])


def _images_and_precision(pivot: Pivot) -> str:
    """Return what differs between groups of one title."""
    record = next(filter(finished, pivot.records), pivot.records[0])
    images = record.dataset.n
    return f"{'unknown' if images is None else f'{images:,}'} images, {record.precision or 'unknown'}"


def mean_and_deviation(records: Sequence[Record], read: Callable[[Record], float | None]) -> tuple[float, float] | None:
    """Return mean and sample standard deviation (NaN, not drawn, for one record); None where all values are missing."""
    known = [number for record in records if (number := read(record)) is not None]
    if not known:
        return None
    return statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else math.nan


def top1_and_bar(records: Sequence[Record]) -> tuple[float, float] | None:
    """Return mean top-1 and its error bar: the deviation over seeds, the binomial error of a single one."""
    numbers = mean_and_deviation(records, lambda record: record.top1)
    if numbers is None or not math.isnan(numbers[1]):
        return numbers
    [record] = [record for record in records if record.top1 is not None]
    error, images = record.top1_se, record.dataset.n
    if error is None and images:
        error = standard_error(numbers[0], images)
    return numbers[0], math.nan if error is None else error


def about_bars(group: Group) -> str:
    """Return what the error bars of accuracies are."""
    seeds = {min(2, len(place)) for method in group.methods for place in method.places if place}
    words = {1: "binomial error (one seed)", 2: "deviation over seeds"}
    return "bars: " + " or ".join(words[count] for count in sorted(seeds, reverse=True))
