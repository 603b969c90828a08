"""Groups: finished records by what a plot compares, with means and deviations over seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from dfqbench.report.labels import model_name, scheme_label, short_names
from dfqbench.report.layout import Layout
from dfqbench.report.sheet import Sheet, sheets
from dfqbench.report.status import finished
from dfqbench.run.store.record import Record

BY_BITS = Layout(("method",), ("bits",), ())
BY_SCHEME = Layout(("method",), ("scheme",), ())


@dataclass(frozen=True, slots=True)
class Method:
    """One method in a group.

    Attributes:
        label: as in tables.
        control: whether it is one.
        places: finished records by column, in the group's order of columns.
    """

    label: str
    control: bool
    places: tuple[tuple[Record, ...], ...]


@dataclass(frozen=True, slots=True)
class Group:
    """What one plot compares: one network on one target with one budget (and one protocol).

    Attributes:
        title: names of these.
        columns: names of the columns.
        methods: in order, controls last.
        full: full-precision top-1 in percent, or None.
    """

    title: str
    columns: tuple[str, ...]
    methods: tuple[Method, ...]
    full: float | None


def groups(records: Iterable[Record], layout: Layout) -> list[Group]:
    """Groups of finished records; a group without any is left out."""
    known = sheets(records, layout)
    titles = [_title(sheet) for sheet in known]
    found = [
        _group(sheet, title if titles.count(title) == 1 else f"{title}, {_apart(sheet)}")
        for sheet, title in zip(known, titles, strict=True)
    ]
    return [group for group in found if group.methods]


def _group(sheet: Sheet, title: str) -> Group:
    good = [record for record in sheet.records if finished(record)]
    columns = [
        at
        for at in range(len(sheet.columns))
        if any(finished(record) for row in range(len(sheet.rows)) for record in sheet.places.get((row, at), ()))
    ]
    methods = []
    for at, line in enumerate(sheet.rows):
        places = tuple(tuple(r for r in sheet.places.get((at, column), ()) if finished(r)) for column in columns)
        if any(places):
            methods.append(Method(line.names["method"], line.control, places))
    names = tuple(next(iter(sheet.columns[at].names.values())) for at in columns)
    known = [full for record in good if (full := record.fp_top1) is not None]
    return Group(title, names, tuple(methods), statistics.fmean(known) if known else None)


def _title(sheet: Sheet) -> str:
    record = sheet.records[0]
    model = model_name(record)
    parts = [record.target or "unknown", short_names([model])[model]]
    if "protocol" in sheet.layout.pages:
        parts.append("@" + scheme_label(record).partition("@")[2])
    return ", ".join([*parts, f"budget {record.budget or 'unknown'}"])


def _apart(sheet: Sheet) -> str:
    """What tells sheets of one title apart: evaluation images and precision."""
    record = next((record for record in sheet.records if finished(record)), sheet.records[0])
    images = record.dataset.n
    return f"{'unknown' if images is None else f'{images:,}'} images, {record.precision or 'unknown'}"


def mean_and_deviation(records: Sequence[Record], read: Callable[[Record], float | None]) -> tuple[float, float] | None:
    """Mean and sample standard deviation (NaN, which is not drawn, for one); None where no record has the value."""
    known = [entry for record in records if (entry := read(record)) is not None]
    if not known:
        return None
    return statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else math.nan
