"""Plots and pictures inside the page, as far as there is room."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dfqbench.report.pictures import pictures
from dfqbench.report.pictures.grid import encoded
from dfqbench.report.plots import KINDS, draw_plots
from dfqbench.run.store.record import Record

PLOT_ROOM, PICTURE_ROOM = 1_900_000, 2_200_000
"""Bytes of the page that plots and pictures may take, so that it stays under five megabytes."""


@dataclass(frozen=True, slots=True)
class Figure:
    """An image inside the page.

    Attributes:
        title: what it shows; also for those who do not see it.
        kind: heading that it stands under.
        source: a `data:` URI.
        width: in CSS pixels.
        height: in CSS pixels.
    """

    title: str
    kind: str
    source: str
    width: int
    height: int


def drawn_plots(records: Sequence[Record]) -> tuple[list[Figure], int]:
    """Plots that have room, those of several methods first, and how many have none."""
    found, used, left = [], 0, 0
    for plot in draw_plots(records):
        source = _uri("image/svg+xml", plot.drawn("svg"))
        if used + len(source) > PLOT_ROOM:
            left += 1
            continue
        used += len(source)
        width, height = plot.figure.get_size_inches()
        found.append(Figure(plot.title, KINDS[plot.kind], source, round(width * 130), round(height * 100)))
    return found, left


def drawn_pictures(attempts: Iterable[tuple[Record, Path]]) -> tuple[list[Figure], int, list[str]]:
    """Pictures that have room, how many have none, and why others cannot be shown."""
    made, problems = pictures(attempts, smooth=True)
    found, used, left = [], 0, 0
    for picture in made:
        source = _uri("image/jpeg", encoded(picture.image, "jpeg"))
        if used + len(source) > PICTURE_ROOM:
            left += 1
            continue
        used += len(source)
        found.append(Figure(picture.title, picture.place, source, picture.image.width, picture.image.height))
    return found, left, problems


def _uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
