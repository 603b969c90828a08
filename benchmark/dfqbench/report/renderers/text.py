"""Tables for a terminal."""

from __future__ import annotations

import textwrap
from itertools import groupby
from typing import Any

from dfqbench.report.comparison.ranks import BEST, SECOND
from dfqbench.report.renderers.plain_text import WIDTH, bullet, grid
from dfqbench.report.tables.table import RANK_RULE, Entry, Table, with_gaps

SOURCE_WIDTH = 38  # of sources and differences, so that published numbers fit 80 columns
_MARKS = {BEST: "**", SECOND: "*"}  # before numbers, so that these stay aligned


def to_text(table: Table) -> str:
    """Return the table as plain text; one that is too wide is split by columns."""
    count = len(table.columns)
    parts: list[str] = []
    for size in range(_most_columns(table), 0, -1):
        parts = [_grid(table, range(start, min(start + size, count))) for start in range(0, count, size)]
        if max(len(line) for part in parts for line in part.splitlines()) <= WIDTH:
            break
    lines = [table.title, "", "\n\n".join(parts), ""]
    for number, note in enumerate(table.footnotes, start=1):
        lines.append(textwrap.fill(f"[{number}] {note}", WIDTH, subsequent_indent="    "))
    lines += [bullet(line, break_on_hyphens=False) for line in table.caption]
    if table.ranked:
        lines.append(bullet(f"**: best, *: second {RANK_RULE}"))
    return "\n".join([*lines, *_published(table)])


def _most_columns(table: Table) -> int:
    """Return how many groups of columns may stand side by side at most, which saves trying more."""
    fields = sum(2 + len(metric.header) for metric in table.metrics)
    return max(1, min(len(table.columns), WIDTH // max(fields, min(map(len, table.columns)))))


def _grid(table: Table, columns: range) -> str:
    from tabulate import SEPARATING_LINE

    headers = [*table.heads, *table.made]
    alignment = table.row_alignment
    first, *others = (metric.header for metric in table.metrics)
    for at in columns:
        headers += [f"{table.columns[at]}\n{first}", *(f"\n{header}" for header in others)]
    width = len(table.metrics)
    body: list[Any] = []
    for gap, head, row in with_gaps(table.rows):
        if gap == "block":
            body.append(SEPARATING_LINE)
        elif gap == "controls":
            body.append([""] * len(headers))
        body.append([*head, *row.made, *map(_field, row.entries[columns.start * width : columns.stop * width])])
    return grid(body, headers, alignment + ["right"] * (len(headers) - len(alignment)))


def _field(entry: Entry) -> str:
    return _MARKS.get(entry.rank, "") + entry.text + "".join(f" [{number}]" for number in entry.notes)


def _published(table: Table) -> list[str]:
    if not table.published:
        return [] if table.published is None else ["", table.nothing_published]
    lines = ["", "Published numbers for these cells:"]
    shared = len(table.heads) + 2  # the names of a cell, and what was measured
    *headers, _, _ = map(_broken, table.published_headers[shared:])
    for (*names, measured), group in groupby(table.published, key=lambda fields: fields[:shared]):
        rows = []
        for *fields, differs, source in group:
            lines_of_source = textwrap.wrap(f"{source}: {differs}", SOURCE_WIDTH, break_on_hyphens=False)
            rows.append([*map(_broken, fields[shared:]), "\n".join(lines_of_source)])
        shown = grid(rows, [*headers, "source: what differs"], table.published_alignment[shared:-1])
        lines += ["", f"{', '.join(names)}: {measured} measured", "", shown]
    return [*lines, "", *map(bullet, (*table.published_notes, *table.references))]


def _broken(field: str) -> str:
    return field.replace(" (", "\n(").replace("claimed ", "claimed\n")
