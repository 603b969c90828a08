"""Rendering records in any format."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, get_args

from dfqbench.api.errors import unknown_name
from dfqbench.report.literature.publication_index import PublicationIndex
from dfqbench.report.literature.verdict import Verdict, verdicts
from dfqbench.report.record_access import finished, json_ready, latest
from dfqbench.report.renderers.csv import to_csv
from dfqbench.report.tables.pivot import Layout, Pivot, parse_layout, pivots
from dfqbench.report.tables.table import Table, build_table
from dfqbench.run.store.record import Record

Format = Literal["text", "md", "latex", "html", "csv", "json"]
FORMATS: tuple[str, ...] = get_args(Format)


def render(
    records: Sequence[Record],
    fmt: Format = "text",
    hardware: Mapping[str, str] | None = None,
    *,
    layout: Layout | None = None,
    publications: PublicationIndex | None = None,
) -> str:
    """Render the latest attempt at each cell.

    Args:
        records: of one run or more.
        fmt: `text`, `md`, `latex` and `html` for people: one table for each target, evaluation set and budget,
            aggregated over seeds, with caption and footnotes; `csv` (a row a cell) and `json` (the records) for
            programs, with the mark of each cell in the default layout.
        hardware: words for the environments that the records name (see `describe_hardware`).
        layout: rows, columns and metrics of the tables; None: methods by models.
        publications: published numbers to show beside the measured ones; None: none.

    Returns:
        The text, with a line end.

    Raises:
        UsageError: the format is unknown.
    """
    if fmt not in FORMATS:
        raise unknown_name("format", fmt, FORMATS)
    if fmt in {"json", "csv"}:
        newest = latest(records)
        compared = pivots(newest, parse_layout())
        marks = _marks(compared)
        judged = None if publications is None else _judged(compared, publications)
        if fmt == "csv":
            return to_csv(newest, marks, judged)
        data = [record.as_dict() | {"mark": marks.get(id(record), "")} for record in newest]
        if judged is not None:
            claims = ([verdict.as_dict() for verdict in judged.get(id(record), ())] for record in newest)
            data = [entry | {"claims": verdicts} for entry, verdicts in zip(data, claims, strict=True)]
        return json.dumps(json_ready(data), indent=2, allow_nan=False, default=str) + "\n"
    tables = build_tables(records, hardware or {}, layout or parse_layout(), publications)
    if fmt == "html":
        from dfqbench.report.renderers.html import to_html

        return to_html(tables) + "\n"
    from dfqbench.report.renderers.latex import to_latex
    from dfqbench.report.renderers.markdown import to_markdown
    from dfqbench.report.renderers.text import to_text

    renderers: dict[str, Callable[[Table], str]] = {"text": to_text, "md": to_markdown, "latex": to_latex}
    return "\n\n".join(map(renderers[fmt], tables)) + "\n" if tables else "no records\n"


def build_tables(
    records: Sequence[Record], hardware: Mapping[str, str], layout: Layout, publications: PublicationIndex | None = None
) -> list[Table]:
    """Return the records' tables before they are rendered; arguments as in :func:`render`."""
    return [build_table(pivot, hardware, publications) for pivot in pivots(records, layout)]


def _marks(compared: Iterable[Pivot]) -> dict[int, str]:
    """Return `best`, `second` or `not distinguished` (from the best) by the record's `id`; seeds share it."""
    return {
        id(record): rank
        for pivot in compared
        for ranking in pivot.rankings
        for place, rank in ranking.ranks.items()
        for record in filter(finished, pivot.places[place])
    }


def _judged(compared: Iterable[Pivot], publications: PublicationIndex) -> dict[int, list[Verdict]]:
    """Return the verdicts about finished records, the most comparable first, by the record's `id`.

    A verdict is about all seeds of a cell, which share it.
    """
    judged: dict[int, list[Verdict]] = {}
    for pivot in compared:
        for group in pivot.places.values():
            good = [record for record in group if finished(record)]
            judged |= dict.fromkeys(map(id, good), verdicts(good, publications))
    return judged
