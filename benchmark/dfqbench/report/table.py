"""The table: any view of the records, in any form."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

from dfqbench.api.errors import unknown_name
from dfqbench.report.book import ClaimBook
from dfqbench.report.flat import to_csv
from dfqbench.report.layout import Layout, parse_layout
from dfqbench.report.page import Page, make_page
from dfqbench.report.sheet import sheets
from dfqbench.report.status import finished
from dfqbench.report.values import latest, plain
from dfqbench.report.verdict import Verdict, verdicts
from dfqbench.run.store.record import Record

Format = Literal["text", "md", "latex", "html", "csv", "json"]
FORMATS: tuple[str, ...] = get_args(Format)


def render(
    records: Sequence[Record],
    fmt: Format = "text",
    hardware: Mapping[str, str] | None = None,
    *,
    layout: Layout | None = None,
    claims: ClaimBook | None = None,
) -> str:
    """Renders records.

    Only the latest attempt at each cell counts.

    Args:
        records: of one run or more.
        fmt: `text`, `md`, `latex` and `html` for people: one table for each target, evaluation set and budget, seeds
            summed up, with caption and footnotes; `csv` (a row a cell) and `json` (the records) for programs.
        hardware: words for the environments that the records name (see `report.hardware`).
        layout: rows, columns and values of the forms for people; None: methods by models.
        claims: published numbers that stand beside the measured ones; None: none do.

    Returns:
        The text, with a line end.

    Raises:
        UsageError: the format is unknown.
    """
    if fmt not in FORMATS:
        raise unknown_name("format", fmt, FORMATS)
    if fmt in {"json", "csv"}:
        found = latest(records)
        judged = None if claims is None else claimed(found, claims)
        if fmt == "csv":
            return to_csv(found, judged)
        data = [plain(_with_claims(record, judged)) for record in found]
        return json.dumps(data, indent=2, allow_nan=False, default=str) + "\n"
    return rendered_pages(make_pages(records, hardware, layout=layout, claims=claims), fmt)


def make_pages(
    records: Sequence[Record],
    hardware: Mapping[str, str] | None = None,
    *,
    layout: Layout | None = None,
    claims: ClaimBook | None = None,
) -> list[Page]:
    """The records' tables before they take a form; arguments as in :func:`render`."""
    return [make_page(sheet, hardware or {}, claims=claims) for sheet in sheets(records, layout or parse_layout())]


def rendered_pages(pages: Sequence[Page], fmt: str) -> str:
    """Pages in a form for people: `text`, `md`, `latex` or `html`."""
    if fmt == "html":
        from dfqbench.report.forms.html import html_pages

        return html_pages(pages) + "\n"
    from dfqbench.report.forms.latex import latex_page
    from dfqbench.report.forms.markdown import markdown_page
    from dfqbench.report.forms.text import text_page

    forms: dict[str, Callable[[Page], str]] = {"text": text_page, "md": markdown_page, "latex": latex_page}
    return "\n\n".join(forms[fmt](page) for page in pages) + "\n" if pages else "no records\n"


def _with_claims(record: Record, judged: Mapping[int, Sequence[Verdict]] | None) -> dict[str, Any]:
    data = record.as_dict()
    return data if judged is None else data | {"claims": [entry.as_dict() for entry in judged.get(id(record), ())]}


def claimed(records: Sequence[Record], book: ClaimBook) -> dict[int, list[Verdict]]:
    """What was published about finished records, with verdicts, best comparable first, by the record's `id`.

    A verdict looks at all seeds of a cell, so that those share it.
    """
    found: dict[int, list[Verdict]] = {}
    for sheet in sheets(records, parse_layout()):
        for group in sheet.places.values():
            good = [record for record in group if finished(record)]
            found |= dict.fromkeys(map(id, good), verdicts(good, book))
    return found
