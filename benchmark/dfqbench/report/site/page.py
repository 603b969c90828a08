"""Putting the page together."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from dfqbench.report.book import ClaimBook, published_book
from dfqbench.report.columns import VALUES
from dfqbench.report.forms.html import claims_in_html
from dfqbench.report.labels import labels
from dfqbench.report.layout import parse_layout
from dfqbench.report.page import make_page
from dfqbench.report.sheet import sheets
from dfqbench.report.site.cells import SUMMARY, anchor, section, summary
from dfqbench.report.site.media import drawn_pictures, drawn_plots
from dfqbench.report.templates import template
from dfqbench.report.values import flattened, latest
from dfqbench.run.store.record import Record

MOST_SECTIONS = 400
"""Cells that have a section; failed ones come first where there are more."""
DIAGNOSED = (
    *("bns", "silhouette", "margin", "homogeneity", "attention_spread", "attention_consistency"),
    *("label_accuracy", "confidence", "per_image", "speed"),
)


def report_page(
    attempts: Sequence[tuple[Record, Path]],
    hardware: Mapping[str, str],
    environments: Mapping[str, Mapping[str, Any]],
    title: str,
    book: ClaimBook | None = None,
) -> str:
    """The whole page.

    Args:
        attempts: records with the folders of their attempts.
        hardware: words for environments, by id.
        environments: their descriptions, by id.
        title: of the page.
        book: published numbers; None: the host's own.

    Returns:
        HTML that refers to nothing outside itself; everything from records is escaped.
    """
    folders = {id(record): folder for record, folder in attempts}
    newest = latest([record for record, _ in attempts])
    names = labels(newest)
    found = sheets(newest, parse_layout())
    shown = sorted(newest, key=lambda record: record.status == "ok")[:MOST_SECTIONS]
    kept = {id(record) for record in shown}
    ordered = [record for sheet in found for _, place in sorted(sheet.places.items()) for record in place]
    older = [record for record in newest if id(record) not in {id(entry) for entry in ordered}]
    sections = [section(r, folders[id(r)], names[id(r)], hardware) for r in (*ordered, *older) if id(r) in kept]
    known = frozenset(entry.anchor for entry in sections)
    plots, plots_left = drawn_plots(newest)
    images, images_left, problems = drawn_pictures([(record, folders[id(record)]) for record in newest])
    script = _resource("report.js")
    return template("report.html").render(
        title=title,
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        values=SUMMARY,
        lines=[line for sheet in found for line in summary(sheet, known, book or published_book())],
        pages=[make_page(sheet, hardware, claims=book or published_book()) for sheet in found],
        diagnosed=_diagnosed(newest, hardware),
        plots=plots,
        plots_left=plots_left,
        pictures=images,
        pictures_left=images_left,
        problems=problems,
        sections=sections,
        sections_left=len(newest) - len(sections),
        environments={name: sorted(flattened(entry).items()) for name, entry in environments.items()},
        hardware=hardware,
        anchor=anchor,
        **claims_in_html(),
    )


def _diagnosed(records: Sequence[Record], hardware: Mapping[str, str]) -> list[Any]:
    """Tables of what `diagnose` has measured, where it has."""
    measured = [record for record in records if record.diagnostics.version is not None]
    keys = [name for name in DIAGNOSED if any(VALUES[name].read(record) is not None for record in measured)]
    if not keys:
        return []
    return [make_page(sheet, hardware) for sheet in sheets(measured, parse_layout(values=keys))]


def _resource(name: str) -> str:
    return resources.files("dfqbench.report.templates").joinpath(name).read_text(encoding="utf-8")
