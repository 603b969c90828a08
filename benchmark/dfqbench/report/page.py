"""Pages: a table with its marks, footnotes, caption and claims, before it takes the form of any format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dfqbench.report.book import ClaimBook
from dfqbench.report.caption import caption, title
from dfqbench.report.columns import Value
from dfqbench.report.labels import short_names
from dfqbench.report.outcome import Outcome, outcome
from dfqbench.report.sheet import Line, Sheet
from dfqbench.report.status import finished
from dfqbench.report.values import ABSENT
from dfqbench.report.verdict import Verdict, verdicts

BEST, SECOND = "best", "second"


@dataclass(frozen=True, slots=True)
class Entry:
    """One field of the body.

    Attributes:
        text: what it shows.
        rank: `best`, `second` or empty, among the methods that it is compared with.
        notes: numbers of its footnotes, from 1.
        number: the mean over seeds behind it; None where there is none.
    """

    text: str
    rank: str = ""
    notes: tuple[int, ...] = ()
    number: float | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One row.

    Attributes:
        head: its names, one for each row dimension.
        entries: its fields, those of one column after the other.
        block: what separates groups of rows: rows with another block follow after a rule.
        control: whether it is a control.
    """

    head: tuple[str, ...]
    entries: tuple[Entry, ...]
    block: tuple[str, ...]
    control: bool


@dataclass(frozen=True, slots=True)
class Column:
    """A group of columns.

    Attributes:
        name: over the group.
        values: what its columns show.
        control: whether it holds a control.
    """

    name: str
    values: tuple[Value, ...]
    control: bool


@dataclass(frozen=True, slots=True)
class Judged:
    """One claim beside a measurement, as a row.

    Attributes:
        place: names of row and column.
        verdict: the claim and what it was held against.
    """

    place: tuple[str, ...]
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Page:
    """One table.

    Attributes:
        title: what it is about.
        heads: names of the row dimensions.
        across: names of the column dimensions.
        columns: groups of columns.
        rows: the body.
        footnotes: in the order of their numbers.
        caption: one statement an entry.
        judged: claims about its cells; None: not asked for.
    """

    title: str
    heads: tuple[str, ...]
    across: tuple[str, ...]
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    footnotes: tuple[str, ...]
    caption: tuple[str, ...]
    judged: tuple[Judged, ...] | None

    @property
    def ranked(self) -> bool:
        """Whether a best or second is marked."""
        return any(entry.rank for row in self.rows for entry in row.entries)


def make_page(sheet: Sheet, hardware: Mapping[str, str], *, claims: ClaimBook | None = None) -> Page:
    """Makes a page of a sheet.

    Args:
        sheet: the records.
        hardware: words for the environments that records name.
        claims: published numbers to hold against it; None: none are.
    """
    values = sheet.layout.values
    outcomes = {place: outcome(records, values) for place, records in sheet.places.items()}
    ranks = _ranks(sheet, outcomes, values)
    footnotes = _Footnotes()
    rows = []
    for at, line in enumerate(sheet.rows):
        entries: list[Entry] = []
        for column in range(len(sheet.columns)):
            place = (at, column)
            entries += _entries(outcomes.get(place), len(values), ranks.get(place, {}), footnotes)
        rows.append(Row(tuple(line.names.values()), tuple(entries), sheet.block(at), line.control))
    names = short_names(sheet.models)
    return Page(
        title(sheet),
        tuple(sheet.layout.rows),
        tuple(sheet.layout.columns),
        tuple(Column(_column_name(line, names), values, line.control) for line in sheet.columns),
        tuple(rows),
        tuple(footnotes.notes),
        tuple(caption(sheet, hardware)),
        None if claims is None else tuple(_judged(sheet, names, claims)),
    )


class _Footnotes:
    """Numbers the reasons; the same reason has one number."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def mark(self, notes: Sequence[str]) -> tuple[int, ...]:
        """The numbers of some notes."""
        for note in notes:
            if note not in self.notes:
                self.notes.append(note)
        return tuple(self.notes.index(note) + 1 for note in notes)


def _entries(found: Outcome | None, count: int, ranks: Mapping[int, str], footnotes: _Footnotes) -> list[Entry]:
    if found is None:
        return [Entry(ABSENT)] * count
    marks = footnotes.mark(found.notes)
    return [
        Entry(shown, ranks.get(place, ""), marks if place == 0 else (), mean)
        for place, (shown, mean) in enumerate(zip(found.shown, found.means, strict=True))
    ]


def _ranks(
    sheet: Sheet, outcomes: Mapping[tuple[int, int], Outcome], values: Sequence[Value]
) -> dict[tuple[int, int], dict[int, str]]:
    """Best and second of each group of rivals, by place and position of the value; equal as printed, equal in rank."""
    ranks: dict[tuple[int, int], dict[int, str]] = {}
    for group in sheet.rivals():
        rivals = [place for place in group if outcomes[place].competes]
        for position, value in enumerate(values):
            known = {place: mean for place in rivals if (mean := outcomes[place].means[position]) is not None}
            if not value.better or len(known) < 2:
                continue
            printed = {place: value.show(mean) for place, mean in known.items()}
            best_first = sorted(known, key=lambda place: known[place], reverse=value.better == "higher")
            steps = list(dict.fromkeys(printed[place] for place in best_first))
            for place in known:
                step = steps.index(printed[place])
                # Where several share the first place there is no second.
                firsts = sum(text == steps[0] for text in printed.values())
                if step == 0 and len(steps) > 1:
                    ranks.setdefault(place, {})[position] = BEST
                elif step == 1 and firsts == 1:
                    ranks.setdefault(place, {})[position] = SECOND
    return ranks


def _column_name(line: Line, models: Mapping[str, str]) -> str:
    return ", ".join(models.get(name, name) if dimension == "model" else name for dimension, name in line.names.items())


def _judged(sheet: Sheet, models: Mapping[str, str], book: ClaimBook) -> list[Judged]:
    found = []
    for (row, column), records in sorted(sheet.places.items()):
        good = [record for record in records if finished(record)]
        place = (*sheet.rows[row].names.values(), _column_name(sheet.columns[column], models))
        found += [Judged(place, verdict) for verdict in verdicts(good, book)]
    return found
