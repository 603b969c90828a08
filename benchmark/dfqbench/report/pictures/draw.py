"""One picture for each method on each network: images at the end, and over training where the source was live."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dfqbench.api.errors import DfqError
from dfqbench.report.pictures.grid import class_grid, training_grid
from dfqbench.report.pictures.images import load_images, load_kept_images, pixels, training_images
from dfqbench.report.record_access import control_rank, finished, latest, model_name, scheme_label, short_names
from dfqbench.report.tables.labels import method_labels
from dfqbench.run.store.record import Record

if TYPE_CHECKING:
    from PIL.Image import Image

MOST_ON_PAGE = 32  # images of a cell that an HTML page shows


@dataclass(frozen=True, slots=True)
class Picture:
    """One grid of images."""

    method: str  # label as in tables
    title: str  # method, target, network, and the cell that it is from
    name: str  # for files
    image: Image
    over_training: bool  # whether its rows are points of the training


def draw_pictures(attempts: Iterable[tuple[Record, Path]], *, smooth: bool = False) -> tuple[list[Picture], list[str]]:
    """Draw grids of the first cell of each method, network and budget that has kept images.

    Args:
        attempts: records with their folders.
        smooth: for pages that must stay small: fewer images, whose pixels lose their edges when enlarged.

    Returns:
        The pictures, and a line for each cell whose images cannot be shown.
    """
    pairs = list(attempts)
    folders = {id(record): folder for record, folder in pairs}
    newest = [record for record in latest(record for record, _ in pairs) if finished(record)]
    labels = method_labels(newest)

    def order(record: Record) -> tuple[object, ...]:
        # Many bits first, then the first seed.
        first = (-(record.scheme.w_bits or 0), record.seed or 0)
        return record.target, model_name(record), control_rank(record), labels[id(record)], *first

    drawn: dict[tuple[str, ...], list[Picture]] = {}
    problems: list[str] = []
    for record in sorted(newest, key=order):
        label = labels[id(record)]
        key = (record.target, model_name(record), record.budget, label)
        if key in drawn:
            continue
        try:
            drawn[key] = _draw(record, folders[id(record)], label, smooth=smooth)
        except DfqError as error:
            problems.append(f"{label} {record.cell_id}: {error}")
    return [picture for pictures in drawn.values() for picture in pictures], problems


def _draw(record: Record, folder: Path, label: str, *, smooth: bool) -> list[Picture]:
    model = model_name(record)
    place = f"{record.target or 'unknown'}, {short_names([model])[model]}"
    budget, seed = record.budget or "unknown", "?" if record.seed is None else record.seed
    title = f"{label}: {place}, budget {budget}, from the cell at {scheme_label(record)}, seed {seed}"
    name = re.sub(r"[^a-z0-9]+", "-", f"{place} {label} {budget}".lower()).strip("-")[:90]
    images, classes = load_kept_images(folder)
    shown = pixels(images, record)
    order, captions = _captions(record, len(shown), None if classes is None else classes.tolist())
    if smooth:
        # Evenly through the classes.
        step = -(-len(order) // MOST_ON_PAGE)
        order, captions = order[::step], captions[::step]
    grid = class_grid(shown[order], captions, smooth=smooth)
    pictures = [Picture(label, title, name, grid, over_training=False)]
    confidences = {point.step: point.confidence for point in record.diagnostics.over_training}
    rows = []
    for step, file in training_images(folder).items():
        confidence = confidences.get(step)
        words = f"step {step}" + ("" if confidence is None else f"\n{100 * confidence:.0f} %")
        rows.append((words, pixels(load_images(file)[0], record)))
    if len(rows) > 1:
        grid = training_grid(rows, smooth=smooth)
        pictures.append(Picture(label, f"{title}, over training", f"{name}-training", grid, over_training=True))
    return pictures


def _captions(record: Record, count: int, classes: Sequence[int] | None) -> tuple[list[int], list[str]]:
    """Return the order by class, and in that order each image's class and, on a second line, the teacher's confidence.

    Where the source gave no labels, classes are the teacher's answers, marked with `~`.
    """
    answers, confidences = record.diagnostics.answers, record.diagnostics.confidences
    answered = len(answers) == len(confidences) == count
    shown: Sequence[int] = classes if classes is not None else answers if answered else [0] * count
    order = sorted(range(count), key=lambda at: (shown[at], at))
    captions = []
    for at in order:
        name = "" if classes is None else str(classes[at])
        confidence = f"{100 * confidences[at]:.0f} %" if answered else ""
        if answered and classes is None:
            name = f"~{answers[at]}"
        elif answered and answers[at] != shown[at]:
            name += f" > {answers[at]}"
        captions.append("\n".join(filter(None, (name, confidence))))
    return order, captions
