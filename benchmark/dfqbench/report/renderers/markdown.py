"""Tables as Markdown."""

from __future__ import annotations

from dfqbench.report.comparison.ranks import BEST, SECOND
from dfqbench.report.renderers.escape import markdown
from dfqbench.report.renderers.plain_text import grid
from dfqbench.report.tables.table import RANK_RULE, Entry, Row, Table


def to_markdown(table: Table) -> str:
    """Return the table as Markdown: best in bold, second underlined, controls in italics."""
    headers = [*table.heads, *table.made]
    first, *others = (metric.header for metric in table.metrics)
    for name in table.columns:
        headers += [f"{markdown(name)}<br>{first}", *others]
    body = [[*_head(row), *map(markdown, row.made), *map(_field, row.entries)] for row in table.rows]
    alignment = table.row_alignment
    shown = grid(body, headers, alignment + ["right"] * (len(headers) - len(alignment)), "md")
    lines = [f"### {markdown(table.title)}", "", shown, ""]
    notes = [f"{number}. {markdown(note)}" for number, note in enumerate(table.footnotes, start=1)]
    if notes:
        lines += ["Notes, by the number in brackets:", "", *notes, ""]
    lines += [f"* {markdown(line)}" for line in table.caption]
    if table.ranked:
        lines.append(f"* bold: best, underlined: second {RANK_RULE}")
    return "\n".join([*lines, *_published(table)])


def _head(row: Row) -> list[str]:
    *names, last = map(markdown, row.head)
    return [*names, f"_{last}_" if row.control else last]


def _field(entry: Entry) -> str:
    shown = markdown(entry.text)
    shown = {BEST: f"**{shown}**", SECOND: f"<u>{shown}</u>"}.get(entry.rank, shown)
    return shown + "".join(f" [{number}]" for number in entry.notes)


def _published(table: Table) -> list[str]:
    if not table.published:
        return [] if table.published is None else ["", markdown(table.nothing_published)]
    rows = [list(map(markdown, fields)) for fields in table.published]
    shown = grid(rows, table.published_headers, table.published_alignment, "md")
    return [
        "",
        "Published numbers for these cells:",
        "",
        shown,
        "",
        *(f"* {markdown(line)}" for line in (*table.published_notes, *table.references)),
    ]
