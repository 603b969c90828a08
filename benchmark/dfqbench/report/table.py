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
from dfqbench.report.values import latest, plain

Format = Literal["text", "md", "latex", "html", "csv", "json"]
FORMATS: tuple[str, ...] = get_args(Format)


def render(
    records: Sequence[Mapping[str, Any]],
    fmt: Format = "text",
    hardware: Mapping[str, str] | None = None,
    *,
    layout: Layout | None = None,
    claims: ClaimBook | None = None,
) -> str:
    """Renders records.

    Only the latest attempt at each cell counts. Records of older schemas, with keys missing, are shown as far as
    they go.

    Args:
        records: as in the record files.
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
        found = latest(records) if claims is None else with_claims(latest(records), claims)
        if fmt == "json":
            return json.dumps([plain(record) for record in found], indent=2, allow_nan=False, default=str) + "\n"
        return to_csv(found, claims=claims is not None)
    return rendered_pages(make_pages(records, hardware, layout=layout, claims=claims), fmt)


def make_pages(
    records: Sequence[Mapping[str, Any]],
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


def with_claims(records: Sequence[Mapping[str, Any]], book: ClaimBook) -> list[dict[str, Any]]:
    """Records with the key `claims`: what was published about each, with verdicts, best comparable first.

    A verdict looks at all seeds of a cell, so that those share it.
    """
    from dfqbench.report.status import finished
    from dfqbench.report.verdict import Verdict, verdicts

    seeds: dict[tuple[int, int, int], list[Verdict]] = {}
    mine: dict[int, tuple[int, int, int]] = {}
    for at, sheet in enumerate(sheets(records, parse_layout())):
        for place, group in sheet.places.items():
            good = [record for record in group if finished(record)]
            seeds[(at, *place)] = verdicts(good, book)
            mine.update({id(record): (at, *place) for record in good})
    return [
        dict(record) | {"claims": [_plain(v) for v in seeds.get(mine.get(id(record), (-1, -1, -1)), [])]}
        for record in records
    ]


def _plain(verdict: Any) -> dict[str, Any]:
    claim = verdict.claim
    return {
        "verdict": verdict.word,
        "measured": verdict.measured,
        "tolerance": verdict.tolerance,
        "top1": claim.top1,
        "fp_top1": claim.fp_top1,
        "drop": None if claim.drop is None else round(claim.drop, 4),
        "selection": claim.selection,
        "protocol": claim.protocol,
        "source": claim.source,
        "notes": claim.notes,
    }
