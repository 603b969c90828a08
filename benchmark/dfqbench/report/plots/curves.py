"""Curves over training, and over layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dfqbench.report.plots.groups import Group
from dfqbench.report.plots.style import GRID, Look
from dfqbench.report.values import Record, items, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def points_of(record: Record, key: str, x: str, y: str) -> list[tuple[float, float]]:
    """Points of a list of objects in a record, by x; those without both numbers are left out."""
    entries = [entry for entry in items(record, key) if isinstance(entry, dict)]
    pairs = [(number(entry, x), number(entry, y)) for entry in entries]
    return sorted((at, high) for at, high in pairs if at is not None and high is not None)


def whole_steps(axes: Axes) -> None:
    """Ticks at whole numbers only."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def learning_curves(axes: Axes, group: Group, column: int, looks: dict[str, Look]) -> bool:
    """Top-1 of snapshots against steps; the last state filled and large, the best snapshot (the oracle) ringed.

    Returns:
        Whether there was anything to draw.
    """
    drawn = over_steps(axes, group, column, looks, ("curve", "top1"), markersize=3)
    for look, record, points in drawn:
        last = number(record, "top1")
        if last is not None:
            axes.plot(points[-1][0], last, marker=look.marker, color=look.colour, markersize=7)
        best, step = number(record, "oracle.top1"), number(record, "oracle.step")
        if best is not None and step is not None:
            axes.plot(step, best, marker="o", markersize=12, markerfacecolor="none", color=look.colour)
    if drawn:
        axes.plot([], [], "o", color="#555555", markersize=7, label="last state (the result)")
        axes.plot([], [], "o", color="#555555", markersize=12, markerfacecolor="none", label="oracle (best snapshot)")
    axes.set_ylabel("top-1 (%)")
    return bool(drawn)


def homogeneity_curves(axes: Axes, group: Group, column: int, looks: dict[str, Look]) -> bool:
    """Homogeneity of a live source's images against steps of its training.

    Returns:
        Whether there was anything to draw.
    """
    axes.set_ylabel("cosine similarity of features")
    return bool(over_steps(axes, group, column, looks, ("diagnostics.over_training", "homogeneity")))


def over_steps(
    axes: Axes, group: Group, column: int, looks: dict[str, Look], keys: tuple[str, str], **style: Any
) -> list[tuple[Look, Record, list[tuple[float, float]]]]:
    """One line for each record that holds points, labelled once for each method.

    Args:
        axes: to draw on.
        group: the records.
        column: which of its schemes.
        looks: of the methods.
        keys: of the list of points in a record, and of the value in a point.
        style: of the lines, besides the method's look.

    Returns:
        What was drawn: look, record and points.
    """
    drawn = []
    for method in group.methods:
        label: str | None = method.label
        for record in method.places[column]:
            points = points_of(record, keys[0], "step", keys[1])
            if points:
                look = looks[method.label]
                axes.plot(*zip(*points, strict=True), label=label, **look.keywords | style)
                drawn.append((look, record, points))
                label = None
    axes.set_xlabel("step")
    whole_steps(axes)
    axes.grid(**GRID)
    return drawn


def layer_curves(axes: Axes, group: Group, column: int, looks: dict[str, Look]) -> bool:
    """Distance of the images' means to the BatchNorm layers', in standard deviations, layer by layer.

    Returns:
        Whether there was anything to draw.
    """
    drawn = False
    for method in group.methods:
        gaps = _layers(method.places[column])
        if gaps:
            drawn = True
            axes.plot(range(1, len(gaps) + 1), gaps, label=method.label, **looks[method.label].keywords)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(lambda gap, _: f"{gap:g}" if f"{gap:e}"[0] in "25" else "")
    whole_steps(axes)
    axes.set_xlabel("BatchNorm layer, in order of execution")
    axes.set_ylabel("gap of means (standard deviations)")
    axes.grid(**GRID)
    return drawn


def _layers(records: Sequence[Record]) -> list[float]:
    """Mean over seeds of each layer's gap; empty where records do not agree on the layers."""
    found = []
    for record in records:
        gaps = [number(entry, "mean_gap") for entry in items(record, "diagnostics.layers") if isinstance(entry, dict)]
        known = [gap for gap in gaps if gap is not None]
        if known and len(known) == len(gaps):
            found.append(known)
    if not found or len({len(gaps) for gaps in found}) > 1:
        return []
    return [sum(layer) / len(layer) for layer in zip(*found, strict=True)]
