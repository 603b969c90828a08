"""One picture for each method on each network: images at the end, and over training where the source was live."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dfqbench.api.errors import InputError
from dfqbench.report.labels import labels, model_name, scheme_label, short_names
from dfqbench.report.pictures.display import pixels, stored
from dfqbench.report.pictures.grid import class_grid, training_grid
from dfqbench.report.status import control_rank, finished
from dfqbench.report.values import latest
from dfqbench.run.store.record import Record

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGES, TRAINING = "images.safetensors", "training"
MOST_ON_PAGE = 32
"""Images of a cell that a page shows."""
_POINT = re.compile(r"images-(\d+)\.safetensors")


@dataclass(frozen=True, slots=True)
class Picture:
    """One grid.

    Attributes:
        method: label as in tables.
        place: target and network.
        title: method, place, and the cell that it is from.
        name: for files.
        image: the grid.
        over_training: whether its rows are points of the training.
    """

    method: str
    place: str
    title: str
    name: str
    image: Image
    over_training: bool


def pictures(attempts: Iterable[tuple[Record, Path]], *, smooth: bool = False) -> tuple[list[Picture], list[str]]:
    """Grids of the first cell of each method, network and budget that has kept images.

    Args:
        attempts: records with their folders.
        smooth: whether enlarged images lose the edges of their pixels, for pages that must stay small.

    Returns:
        The pictures, and a line for each cell whose images cannot be shown.
    """
    pairs = list(attempts)
    folders = {id(record): folder for record, folder in pairs}
    known = [record for record, _ in pairs]
    newest = [record for record in latest(known) if finished(record)]
    names = labels(newest)
    order = sorted(newest, key=lambda r: (r.target, model_name(r), control_rank(r), names[id(r)], _late(r)))
    found: list[Picture] = []
    problems: list[str] = []
    done: set[tuple[str, ...]] = set()
    for record in order:
        key = (record.target, model_name(record), record.budget, names[id(record)])
        if key in done:
            continue
        try:
            made = _pictures(record, folders[id(record)], names[id(record)], smooth=smooth)
        except InputError as error:
            problems.append(f"{names[id(record)]} {record.cell_id}: {error}")
            continue
        done.add(key)
        found += made
    return found, problems


def _late(record: Record) -> tuple[int, int]:
    """Many bits first, then the first seed."""
    return -(record.scheme.w_bits or 0), record.seed or 0


def _pictures(record: Record, folder: Path, label: str, *, smooth: bool) -> list[Picture]:
    model = model_name(record)
    place = f"{record.target or 'unknown'}, {short_names([model])[model]}"
    budget, seed = record.budget or "unknown", "?" if record.seed is None else record.seed
    title = f"{label}: {place}, budget {budget}, from the cell at {scheme_label(record)}, seed {seed}"
    name = re.sub(r"[^a-z0-9]+", "-", f"{place} {label} {budget}".lower()).strip("-")[:90]
    images, classes = stored(folder / IMAGES)
    shown = pixels(images, record)
    order, words = _captions(record, len(shown), None if classes is None else classes.tolist())
    if smooth:
        # Evenly through the classes: a page has room for so many.
        step = -(-len(order) // MOST_ON_PAGE)
        order, words = order[::step], words[::step]
    whole = class_grid(shown[order], words, smooth=smooth)
    found = [Picture(label, place, title, name, whole, over_training=False)]
    rows = _points(record, folder)
    if len(rows) > 1:
        grid = training_grid(rows, smooth=smooth)
        found.append(Picture(label, place, f"{title}, over training", f"{name}-training", grid, over_training=True))
    return found


def _captions(record: Record, count: int, classes: Sequence[int] | None) -> tuple[list[int], list[str]]:
    """The order by class, and the class with the teacher's confidence for each image in that order.

    Where the source gave no labels, classes are the teacher's answers, and are marked so.
    """
    answers, confidences = record.diagnostics.answers, record.diagnostics.confidences
    answered = len(answers) == len(confidences) == count
    named: Sequence[int] = classes if classes is not None else answers if answered else [0] * count
    order = sorted(range(count), key=lambda at: (named[at], at))
    words = []
    for at in order:
        name = str(named[at]) if classes is not None else ""
        share = ""
        if answered:
            share = f"{100 * confidences[at]:.0f}%"
            if classes is None or answers[at] != named[at]:
                name += f"{'>' if classes is not None else '~'}{answers[at]}"
        words.append(", ".join(part for part in (name, share) if part))
    return order, words


def _points(record: Record, folder: Path) -> list[tuple[str, Any]]:
    """Words and images of each point of the training, in order."""
    confidence = {point.step: point.confidence for point in record.diagnostics.over_training}
    place = folder.parent / TRAINING
    steps = sorted(
        int(match[1]) for file in (place.iterdir() if place.is_dir() else ()) if (match := _POINT.fullmatch(file.name))
    )
    rows = []
    for step in steps:
        images, _ = stored(place / f"images-{step}.safetensors")
        share = confidence.get(step)
        rows.append((f"step {step}" + ("" if share is None else f"\n{100 * share:.0f}%"), pixels(images, record)))
    return rows
