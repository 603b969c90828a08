"""Views: charts of accuracy against time and bits as data for SVG inside the page, which need no script to be seen."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from dfqbench.report.formatting import duration, optional
from dfqbench.report.literature.publication_index import PublicationIndex
from dfqbench.report.literature.verdict import Verdict, verdicts
from dfqbench.report.metrics import drop, total_seconds
from dfqbench.report.plots import scales
from dfqbench.report.plots.charts import bar_ends, cpu_note, pareto, tick_label, time_and_top1
from dfqbench.report.plots.groups import BY_BITS, BY_SCHEME, Group, about_bars, groups, mean_and_deviation, top1_and_bar
from dfqbench.report.plots.style import MARKERS, Look, shared_looks
from dfqbench.report.tables.origin import origin
from dfqbench.run.store.record import Record

WIDTH, HEIGHT = 440, 300  # of a chart, in its own units
LEFT, RIGHT, TOP, BOTTOM = 40, 12, 24, 40  # margins around the axes
SIZE = (WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM)
BESIDE = 9  # units between a measured point and published ones
_LEAST_ERROR = 0.1  # percentage points from 100 % that the logarithmic axis ends at
_LOG_TICKS = (0, 50, 80, 90, 95, 98, 99, 99.5, 99.9)
SHAPES = {
    "o": "M5 0A5 5 0 1 1-5 0A5 5 0 1 1 5 0Z",
    "s": "M-4.5-4.5H4.5V4.5H-4.5Z",
    "^": "M0-5.5L5.5 4.5H-5.5Z",
    "D": "M0-6L6 0L0 6L-6 0Z",
    "v": "M0 5.5L5.5-4.5H-5.5Z",
    "P": "M-2-5.5H2V-2H5.5V2H2V5.5H-2V2H-5.5V-2H-2Z",
    "X": "M-5-2.5L-2.5-5L0-2.5L2.5-5L5-2.5L2.5 0L5 2.5L2.5 5L0 2.5L-2.5 5L-5 2.5L-2.5 0Z",
    "*": "M0-6.5L1.6-2.2L6.2-2L2.6 0.8L3.8 5.3L0 2.7L-3.8 5.3L-2.6 0.8L-6.2-2L-1.6-2.2Z",
}
"""Markers of the plots as SVG paths around the origin."""
Scale = Callable[[float], float]


@dataclass(frozen=True, slots=True)
class Mark:
    """One point of a chart, measured or published."""

    method: int  # position in the legend
    x: float
    y: float
    bar: tuple[float, ...]  # ends of the error bar, or nothing
    about: str  # lines that are shown where the point is pointed at
    anchor: str = ""  # of the cell's section
    published: bool = False


@dataclass(frozen=True, slots=True)
class Curve:
    """A line of a chart."""

    method: int  # position in the legend; -1: none
    points: str  # as SVG writes them
    about: str = ""


@dataclass(slots=True)
class Chart:
    """One chart, in the units of its SVG."""

    title: str
    x_label: str
    y_label: str
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    curves: list[Curve] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class View:
    """Charts of one network on one target with one budget."""

    title: str
    note: str  # what the error bars are
    charts: tuple[Chart, ...]


@dataclass(frozen=True, slots=True)
class Entry:
    """One method in the legend."""

    label: str
    look: Look
    shape: int  # position in `SHAPES`


@dataclass(frozen=True, slots=True)
class Views:
    """Everything that the page draws itself."""

    legend: list[Entry]
    time: list[View]
    bits: list[View]


def page_views(records: Sequence[Record], anchors: Callable[[Record], str], publications: PublicationIndex) -> Views:
    """Return the charts of these records.

    Args:
        records: the latest attempts.
        anchors: the name of a record's section; empty where it has none.
        publications: published numbers, drawn beside the measured ones.
    """
    by_scheme = groups(records, BY_SCHEME)
    legend = [Entry(label, look, MARKERS.index(look.marker)) for label, look in shared_looks(by_scheme).items()]
    maker = _Maker({entry.label: at for at, entry in enumerate(legend)}, anchors, publications)
    return Views(
        legend,
        list(_views(by_scheme, "time", maker.time_charts)),
        list(_views(groups(records, BY_BITS), "bits", maker.bits)),
    )


def _views(compared: Iterable[Group], what: str, charts: Callable[[Group], list[Chart]]) -> Iterable[View]:
    for group in compared:
        if drawn := charts(group):
            yield View(f"{group.title}: accuracy against {what}", about_bars(group), tuple(drawn))


@dataclass(frozen=True, slots=True)
class _Place:
    """The finished seeds of one method under one scheme."""

    label: str
    control: bool
    records: list[Record]
    top1: tuple[float, float]  # mean and error bar
    judged: list[Verdict]  # published numbers

    @property
    def shown(self) -> list[float]:
        """Accuracies that an axis must show."""
        return [*bar_ends(*self.top1), *(verdict.number.top1 for verdict in self.judged)]


@dataclass(frozen=True, slots=True)
class _Maker:
    legend: dict[str, int]
    anchors: Callable[[Record], str]
    publications: PublicationIndex

    def time_charts(self, group: Group) -> list[Chart]:
        """Return a chart of top-1 against time for each scheme."""
        return [chart for column in range(len(group.columns)) if (chart := self._time(group, column)) is not None]

    def _places(self, group: Group, column: int) -> list[_Place]:
        return [
            _Place(method.label, method.control, records, top1, verdicts(records, self.publications))
            for method in group.methods
            if (top1 := top1_and_bar(records := method.places[column])) is not None
        ]

    def _time(self, group: Group, column: int) -> Chart | None:
        timed = [
            (numbers[0], place)
            for place in self._places(group, column)
            if (numbers := time_and_top1(place.records)) is not None
        ]
        if not timed:
            return None
        low, high = scales.time_span(seconds for seconds, _ in timed)
        log_time = _axis(math.log(low), math.log(high), LEFT, WIDTH - RIGHT)
        bottom, top = scales.accuracy_span(shown for _, place in timed for shown in place.shown)
        y = _axis(bottom, top, HEIGHT - BOTTOM, TOP)
        chart = Chart(
            group.columns[column],
            "synthesis and quantization" + cpu_note(group, column),
            "top-1 (%)",
            [(log_time(math.log(tick)), tick_label(tick)) for tick in scales.time_ticks(low, high)],
            [(y(tick), f"{tick:g}") for tick in scales.accuracy_ticks(bottom, top)],
        )
        drawn = [(log_time(math.log(max(low, seconds))), place) for seconds, place in timed]
        front = pareto([(x, place.top1[0]) for x, place in drawn if not place.control])
        corners = [(x, before) for (_, before), (x, _) in itertools.pairwise(front)]
        if corners:
            chart.curves.append(Curve(-1, _path((x, y(top1)) for x, top1 in sorted(front + corners)), "Pareto front"))
        for x, place in drawn:
            chart.marks += self._marks(place, x, y)
        return chart

    def bits(self, group: Group) -> list[Chart]:
        """Return two charts of top-1 against bits: on a linear axis, and on one that tells small drops apart."""
        if len(group.columns) < 2:
            return []
        columns = [self._places(group, column) for column in range(len(group.columns))]
        shown = [number for places in columns for place in places for number in place.shown]
        bottom, top = scales.accuracy_span(shown)
        low, high = _log(min(shown)) - 0.1, _log(max(shown)) + 0.1
        linear, log_error = (_axis(*ends, HEIGHT - BOTTOM, TOP) for ends in ((bottom, top), (min(low, high - 1), high)))
        axes: tuple[tuple[str, Scale, Sequence[float]], ...] = (
            ("linear axis", linear, scales.accuracy_ticks(bottom, top)),
            ("log axis of the error", lambda top1: log_error(_log(top1)), _LOG_TICKS),
        )
        return [self._bits(group, columns, *axis) for axis in axes]

    def _bits(
        self, group: Group, columns: Sequence[Sequence[_Place]], title: str, y: Scale, ticks: Sequence[float]
    ) -> Chart:
        across = _axis(-0.3, len(group.columns) - 0.7, LEFT, WIDTH - RIGHT)
        chart = Chart(
            title,
            "bits of weights and activations",
            "top-1 (%)",
            [(across(at), name) for at, name in enumerate(group.columns)],
            [(y(tick), f"{tick:g}") for tick in ticks if TOP <= y(tick) <= HEIGHT - BOTTOM],
        )
        for method in group.methods:
            own = [(across(at), e) for at, places in enumerate(columns) for e in places if e.label == method.label]
            chart.curves.append(Curve(self.legend[method.label], _path((x, y(place.top1[0])) for x, place in own)))
            for x, place in own:
                chart.marks += self._marks(place, x, y)
        return chart

    def _marks(self, place: _Place, x: float, y: Scale) -> list[Mark]:
        """Return the point of a method's seeds, and of every published number about them."""
        method, (mean, bar) = self.legend[place.label], place.top1
        ends = tuple(map(y, bar_ends(mean, bar))) if bar > 0 else ()
        marks = [Mark(method, x, y(mean), ends, _about(place), self.anchors(place.records[0]))]
        for verdict in place.judged:
            number = verdict.number
            words = f"{number.method}, published: {number.top1:.2f}\n{number.source}\nverdict: {verdict.word}"
            words += f"\n{verdict.distance}"
            marks.append(Mark(method, x + BESIDE, y(number.top1), (), words, published=True))
        return marks


def _axis(low: float, high: float, begin: float, end: float) -> Scale:
    return lambda value: round(begin + (value - low) / (high - low) * (end - begin), 1)


def _log(top1: float) -> float:
    return -math.log10(max(_LEAST_ERROR, 100 - top1))


def _path(points: Iterable[tuple[float, float]]) -> str:
    return " ".join(f"{x:g},{y:g}" for x, y in points)


def _about(place: _Place) -> str:
    """Return what is shown where a point is pointed at: method, numbers, seeds, recipe and budget."""
    first, (mean, bar) = place.records[0], place.top1
    drops, seconds = mean_and_deviation(place.records, drop), mean_and_deviation(place.records, total_seconds)
    seeds = ", ".join("?" if record.seed is None else str(record.seed) for record in place.records)
    lines = (
        place.label,
        f"top-1 {mean:.2f}" + ("" if math.isnan(bar) else f" ± {bar:.2f}") + f", drop {optional(drops and drops[0])}",
        f"{'seeds' if len(place.records) > 1 else 'seed'} {seeds}",
        f"synthesis and quantization {duration(seconds and seconds[0])}",
        f"recipe {origin(place.records).words}",
        f"budget {first.budget or 'unknown'}" + (f"; {first.fidelity}" if first.fidelity else ""),
    )
    return "\n".join(lines)
