"""Building the report's page, with plots and pictures as far as there is room."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from dfqbench.report.html.cells import SUMMARY, section, summary
from dfqbench.report.literature.publication_index import PublicationIndex, published_index
from dfqbench.report.metrics import METRICS
from dfqbench.report.pictures.draw import Picture, draw_pictures
from dfqbench.report.pictures.grid import encode
from dfqbench.report.plots.draw import draw_plots
from dfqbench.report.record_access import flattened, latest
from dfqbench.report.render import build_tables
from dfqbench.report.renderers.html import environment
from dfqbench.report.tables.labels import fidelity_notes, method_labels
from dfqbench.report.tables.pivot import parse_layout, pivots
from dfqbench.report.tables.table import Table, build_table
from dfqbench.run.store.record import Record

MOST_SECTIONS = 400  # cells that have a section; failed ones come first where there are more
PLOT_BYTES, PICTURE_BYTES = 1_900_000, 2_200_000
"""Most bytes of plots and of pictures, so that the page stays under five megabytes."""
DIAGNOSED = (
    *("bns", "silhouette", "margin", "homogeneity", "attention_spread", "attention_consistency"),
    *("label_accuracy", "confidence", "per_image"),
)


@dataclass(frozen=True, slots=True)
class Figure:
    """An image inside the page."""

    title: str  # also its alternative text
    source: str  # a `data:` URI
    width: int  # in CSS pixels
    height: int


def report_page(
    attempts: Sequence[tuple[Record, Path]],
    hardware: Mapping[str, str],
    environments: Mapping[str, Mapping[str, Any]],
    title: str,
    publications: PublicationIndex | None = None,
) -> str:
    """Return the whole page.

    Args:
        attempts: records with the folders of their attempts.
        hardware: words for environments, by id.
        environments: their descriptions, by id.
        title: of the page.
        publications: published numbers; None: the host's own.

    Returns:
        HTML that refers to nothing outside itself; everything from records is escaped.
    """
    folders = {id(record): folder for record, folder in attempts}
    newest = latest(record for record, _ in attempts)
    labels = method_labels(newest)
    publications = publications or published_index()
    results = pivots(newest, parse_layout())
    ordered = [record for pivot in results for _, place in sorted(pivot.places.items()) for record in place]
    placed = {id(record) for record in ordered}
    ordered += [record for record in newest if id(record) not in placed]
    shown = {id(record) for record in sorted(newest, key=lambda record: record.status == "ok")[:MOST_SECTIONS]}
    sections = [section(r, folders[id(r)], labels[id(r)], hardware) for r in ordered if id(r) in shown]
    anchors = frozenset(entry["anchor"] for entry in sections)
    plots, plots_left = _fitting(_plots(newest), PLOT_BYTES)
    pictures, problems = draw_pictures(((record, folders[id(record)]) for record in newest), smooth=True)
    figures, pictures_left = _fitting(map(_picture, pictures), PICTURE_BYTES)
    script = resources.files("dfqbench.report.html").joinpath("templates/report.js").read_text(encoding="utf-8")
    lines = [line for pivot in results for line in summary(pivot, anchors, publications)]
    return (
        environment()
        .get_template("report.html")
        .render(
            title=title,
            script=script,
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
            metrics=SUMMARY,
            lines=lines,
            notes=fidelity_notes(line["names"][0] for line in lines),
            tables=[build_table(pivot, hardware, publications) for pivot in results],
            diagnosed=_diagnosed(newest, hardware),
            plots=plots,
            plots_left=plots_left,
            pictures=figures,
            pictures_left=pictures_left,
            problems=problems,
            sections=sections,
            sections_left=len(newest) - len(sections),
            environments={name: sorted(flattened(facts).items()) for name, facts in environments.items()},
            hardware=hardware,
        )
    )


def _diagnosed(records: Sequence[Record], hardware: Mapping[str, str]) -> list[Table]:
    """Return tables of what `diagnose` has measured, where it has."""
    measured = [record for record in records if record.diagnostics.version is not None]
    names = [name for name in DIAGNOSED if any(METRICS[name].read(record) is not None for record in measured)]
    return build_tables(measured, hardware, parse_layout(metrics=names)) if names else []


def _plots(records: Sequence[Record]) -> Iterator[Figure]:
    for plot in draw_plots(records):
        width, height = plot.figure.get_size_inches()
        source = _data_uri("image/svg+xml", plot.encode("svg"))
        yield Figure(plot.title, source, round(width * 130), round(height * 100))


def _picture(picture: Picture) -> Figure:
    source = _data_uri("image/jpeg", encode(picture.image, "jpeg"))
    return Figure(picture.title, source, picture.image.width, picture.image.height)


def _data_uri(mime_type: str, content: bytes) -> str:
    return f"data:{mime_type};base64,{base64.b64encode(content).decode('ascii')}"


def _fitting(figures: Iterable[Figure], room: int) -> tuple[list[Figure], int]:
    """Return the figures that have room, and how many have none."""
    fitting, left = [], 0
    for figure in figures:
        if len(figure.source) > room:
            left += 1
        else:
            room -= len(figure.source)
            fitting.append(figure)
    return fitting, left
