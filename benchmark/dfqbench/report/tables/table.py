"""Building a table: its entries with marks, footnotes, caption and published numbers, before any format."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain

from dfqbench.report.comparison.paired import LEVEL
from dfqbench.report.comparison.ranks import BEST, SECOND, TIED, Place
from dfqbench.report.formatting import ABSENT, optional
from dfqbench.report.literature.distance import not_stated
from dfqbench.report.literature.publication_index import PublicationIndex
from dfqbench.report.literature.published import reference_lines
from dfqbench.report.literature.verdict import Verdict, verdicts
from dfqbench.report.metrics import Metric
from dfqbench.report.record_access import finished, shared_by_all, short_names
from dfqbench.report.tables.aggregate import Aggregate, aggregate
from dfqbench.report.tables.caption import caption, title
from dfqbench.report.tables.origin import MEANING, Origin, origin, without_recipe
from dfqbench.report.tables.pivot import Heading, Pivot

RANK_RULE = (
    f"of its column where the paired test of dfqbench compare shows it (q < {LEVEL}), over noise too; "
    "times and counts: as printed; controls take no mark"
)
VERDICT_RULE = (
    "verdict: what was done comes first (other budget, protocol, parameters or weights); then reproduced within "
    "max(0.5, 2 sqrt(se^2 + sd^2)) points, with the binomial error and the deviation over seeds; else below or above"
)
_PUBLISHED_HEADERS = ("measured", "claimed", "claimed drop", "verdict", "differs in", "source")


@dataclass(frozen=True, slots=True)
class Entry:
    """One field of the body."""

    text: str
    rank: str = ""  # `best` or `second` among the methods that it is compared with, or empty
    notes: tuple[int, ...] = ()  # numbers of its footnotes, from 1


@dataclass(frozen=True, slots=True)
class Row:
    """One row."""

    head: tuple[str, ...]  # one name for each row dimension
    made: tuple[str, ...]  # of the table's `made`: how its students were made
    entries: tuple[Entry, ...]  # those of one column after the other
    block: tuple[str, ...]  # a rule separates neighbouring rows of different blocks
    control: bool
    origin: str  # `made` in words


@dataclass(frozen=True, slots=True)
class Table:
    """One table."""

    title: str
    heads: tuple[str, ...]  # names of the row dimensions
    made: tuple[str, ...]  # `recipe` and `images`, where rows are methods and differ in it
    across: tuple[str, ...]  # names of the column dimensions
    columns: tuple[str, ...]  # names of groups of columns, each with all metrics
    metrics: tuple[Metric, ...]
    rows: tuple[Row, ...]
    footnotes: tuple[str, ...]  # in the order of their numbers
    caption: tuple[str, ...]  # one statement an entry
    published: tuple[tuple[str, ...], ...] | None  # rows under `published_headers`; None: not asked for
    published_notes: tuple[str, ...] = ()  # rule of the verdicts, and what was not compared
    references: tuple[str, ...] = ()  # of their sources

    @property
    def row_alignment(self) -> list[str]:
        """`left` or `right` for each column before the numbers."""
        return ["left"] * len(self.heads) + ["right" if name == "images" else "left" for name in self.made]

    @property
    def ranked(self) -> bool:
        """Whether a best or second is marked."""
        return any(entry.rank for row in self.rows for entry in row.entries)

    @property
    def published_headers(self) -> tuple[str, ...]:
        """Headers of the published numbers."""
        return (*self.heads, ", ".join(self.across), *_PUBLISHED_HEADERS)

    @property
    def published_alignment(self) -> tuple[str, ...]:
        """`left` or `right` for each of these headers."""
        return (*["left"] * (len(self.heads) + 1), "right", "right", "right", "left", "left", "left")

    @property
    def nothing_published(self) -> str:
        """The sentence for a table without published numbers."""
        return f"No published number is known for the cells of this table ({self.title})."


def build_table(pivot: Pivot, hardware: Mapping[str, str], publications: PublicationIndex | None = None) -> Table:
    """Build the table of a pivot.

    `hardware` holds words for the environments that records name; without `publications` nothing is compared.
    """
    metrics = pivot.layout.metrics
    in_caption = shared_by_all(pivot.records)
    aggregates = {place: aggregate(records, metrics, in_caption) for place, records in pivot.places.items()}
    ranks = _ranks(pivot, aggregates)
    models = short_names(pivot.models)
    columns = [_column_name(heading, models) for heading in pivot.columns]
    footnotes: dict[str, int] = {}
    rows = []
    made = pivot.compared[1] if "method" in pivot.layout.rows else []
    for at, heading in enumerate(pivot.rows):
        entries: list[Entry] = []
        for column in range(len(pivot.columns)):
            shown = aggregates.get((at, column))
            if shown is None:
                entries += [Entry(ABSENT)] * len(metrics)
                continue
            numbers = tuple(footnotes.setdefault(note, len(footnotes) + 1) for note in shown.notes)
            entries += [
                Entry(text, ranks.get((at, column, metric.name), ""), numbers if metric is metrics[0] else ())
                for metric, text in zip(metrics, shown.texts, strict=True)
            ]
        told = origin(pivot.in_row(at))
        texts = tuple(getattr(told, name) for name in made)
        words = Origin(*(getattr(told, name) if name in made else ABSENT for name in MEANING)).words
        rows.append(Row(_head(pivot, at), texts, tuple(entries), pivot.block(at), heading.control, words))
    judged = {} if publications is None else _judged(pivot, publications)
    published = [
        (*pivot.rows[row].names.values(), columns[column], *_verdict_fields(verdict))
        for (row, column), verdicts_here in judged.items()
        for verdict in verdicts_here
    ]
    return Table(
        title(pivot),
        pivot.layout.rows,
        tuple(made),
        pivot.layout.columns,
        tuple(columns),
        metrics,
        tuple(rows),
        tuple(footnotes),
        tuple(caption(pivot, hardware)),
        None if publications is None else tuple(published),
        (VERDICT_RULE, *_not_compared(chain.from_iterable(judged.values()))),
        tuple(reference_lines(row[-1] for row in published)),
    )


def _head(pivot: Pivot, row: int) -> tuple[str, ...]:
    """Return a row's names; a cross is named by its method alone, since its recipe is shown."""
    return tuple(
        without_recipe(name, pivot.in_row(row)) if dimension == "method" else name
        for dimension, name in pivot.rows[row].names.items()
    )


def with_gaps(rows: Iterable[Row]) -> Iterator[tuple[str, list[str], Row]]:
    """Yield rows with the gap before each (`block`, `controls` or empty), and their head without a repeated name."""
    previous: Row | None = None
    for row in rows:
        gap, head = "", list(row.head)
        if previous is not None:
            if row.block != previous.block:
                gap = "block"
            elif row.control and not previous.control:
                gap = "controls"
            if len(head) > 1 and head[0] == previous.head[0]:
                head[0] = ""
        yield gap, head, row
        previous = row


def _ranks(pivot: Pivot, aggregates: Mapping[Place, Aggregate]) -> dict[tuple[int, int, str], str]:
    """Return the marks by place and metric: from the paired test, or of costs the lowest as printed."""
    ranks: dict[tuple[int, int, str], str] = {}
    for position, metric in enumerate(pivot.layout.metrics):
        for at, group in enumerate(pivot.rivals):
            if metric.tested:
                marks = {place: rank for place, rank in pivot.rankings[at].ranks.items() if rank != TIED}
            else:
                rivals = {place: aggregates[place] for place in group if aggregates[place].competes}
                marks = _as_printed(metric, {place: shown.means[position] for place, shown in rivals.items()})
            ranks |= {(*place, metric.name): rank for place, rank in marks.items()}
    return ranks


def _as_printed(metric: Metric, means: Mapping[Place, float | None]) -> dict[Place, str]:
    """Return best and second; equal as printed, equal in rank."""
    known = {place: mean for place, mean in means.items() if mean is not None}
    if not metric.better:
        return {}
    best_first = sorted(known, key=lambda place: known[place], reverse=metric.better == "higher")
    printed = [metric.show(known[place]) for place in best_first]
    steps = list(dict.fromkeys(printed))
    if len(steps) < 2:
        return {}
    # Where several share the first place there is no second.
    marks = {steps[0]: BEST} | ({steps[1]: SECOND} if printed.count(steps[0]) == 1 else {})
    return {place: marks[text] for place, text in zip(best_first, printed, strict=True) if text in marks}


def _column_name(heading: Heading, models: Mapping[str, str]) -> str:
    return ", ".join(models[name] if dimension == "model" else name for dimension, name in heading.names.items())


def _judged(pivot: Pivot, publications: PublicationIndex) -> dict[Place, list[Verdict]]:
    """Return the verdicts on every published number about a place."""
    places = sorted(pivot.places.items())
    return {
        place: verdicts([record for record in records if finished(record)], publications) for place, records in places
    }


def _not_compared(judged: Iterable[Verdict]) -> list[str]:
    missing = not_stated(verdict.number for verdict in judged)
    return [f"not stated by one source or another, and not compared there: {', '.join(missing)}"] if missing else []


def _verdict_fields(verdict: Verdict) -> tuple[str, ...]:
    number = verdict.number
    best = number.selection == "best"
    oracle = " (oracle)" if best and verdict.measured is not None else ""
    tolerance = f" (within {verdict.tolerance:.2f})" if verdict.word == "reproduced" else ""
    return (
        optional(verdict.measured) + oracle,
        f"{number.top1:.2f}{' (best epoch)' if best else ''}",
        optional(number.drop),
        verdict.word + tolerance,
        verdict.distance,
        number.source,
    )
