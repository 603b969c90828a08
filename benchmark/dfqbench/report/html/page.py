"""Building the report's page, with plots and pictures as far as there is room."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from dfqbench.report.html import views
from dfqbench.report.html.cells import SUMMARY, anchor, section, summary, summary_headers
from dfqbench.report.html.head import head, method_list
from dfqbench.report.literature.publication_index import PublicationIndex, published_index
from dfqbench.report.metrics import METRICS
from dfqbench.report.pictures.draw import Picture, draw_pictures
from dfqbench.report.pictures.grid import encode
from dfqbench.report.plots.draw import KINDS, Plot, iter_plots
from dfqbench.report.record_access import flattened, latest
from dfqbench.report.render import build_tables
from dfqbench.report.renderers.html import environment
from dfqbench.report.tables.labels import fidelity_notes, method_labels
from dfqbench.report.tables.pivot import parse_layout, pivots
from dfqbench.report.tables.table import Table, build_table
from dfqbench.run.store.record import Record

MOST_SECTIONS = 400  # cells that have a section; failed ones come first where there are more
PLOTS = tuple(kind for kind in KINDS if kind not in {"bits", "time"})  # the page has views of these two
PLOT_BYTES, PICTURE_BYTES = 1_200_000, 1_800_000
"""Most bytes of plots and of pictures, so that the page of a hundred cells stays under five megabytes."""
Drawn = TypeVar("Drawn", Plot, Picture)
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
    *,
    commands: Mapping[str, str] | None = None,
) -> str:
    """Return the whole page.

    Args:
        attempts: records with the folders of their attempts.
        hardware: words for environments, by id.
        environments: their descriptions, by id.
        title: of the page.
        publications: published numbers; None: the host's own.
        commands: the command that made each run, by the run's name, where it is known.

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
    lines = summary(results, anchors, publications)
    plots, plots_left = _fitting(iter_plots(newest, PLOTS), _plot, PLOT_BYTES)
    pictures, problems = draw_pictures(((record, folders[id(record)]) for record in newest), smooth=True)
    figures, pictures_left = _fitting(pictures, _picture, PICTURE_BYTES)
    script = resources.files("dfqbench.report.html").joinpath("templates/report.js").read_text(encoding="utf-8")
    return (
        environment()
        .get_template("report.html")
        .render(
            title=title,
            script=script,
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
            head=head(newest, hardware, environments, commands or {}),
            methods=method_list(newest),
            metrics=SUMMARY,
            lines=lines,
            notes=fidelity_notes(line["names"][0] for line in lines),
            headers=summary_headers(lines),
            views=views.page_views(newest, lambda r: anchor(r) if anchor(r) in anchors else "", publications),
            shapes=list(views.SHAPES.values()),
            published_shape=list(views.SHAPES).index("D"),
            chart_size=views.SIZE,
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


def _plot(plot: Plot) -> Figure:
    width, height = plot.figure.get_size_inches()
    source = _data_uri("image/svg+xml", plot.encode("svg"))
    return Figure(plot.title, source, round(width * 130), round(height * 100))


def _picture(picture: Picture) -> Figure:
    source = _data_uri("image/jpeg", encode(picture.image, "jpeg"))
    return Figure(picture.title, source, picture.image.width, picture.image.height)


def _data_uri(mime_type: str, content: bytes) -> str:
    return f"data:{mime_type};base64,{base64.b64encode(content).decode('ascii')}"


def _fitting(drawn: Iterable[Drawn], as_figure: Callable[[Drawn], Figure], room: int) -> tuple[list[Figure], bool]:
    """Return the figures before the first that has no room, and whether there is one; none is drawn after it."""
    fitting: list[Figure] = []
    for figure in map(as_figure, drawn):
        room -= len(figure.source)
        if room < 0:
            return fitting, True
        fitting.append(figure)
    return fitting, False
