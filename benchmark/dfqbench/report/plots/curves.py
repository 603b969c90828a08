"""Curves over training, and over layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from dfqbench.report.plots.groups import Group
from dfqbench.report.plots.style import GRID, Look
from dfqbench.run.store.record import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes


Points = Callable[[Record], Iterable[tuple[int | None, float | None]]]
"""What reads steps and values from a record."""


def whole_steps(axes: Axes) -> None:
    """Ticks at whole numbers only."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def learning_curves(axes: Axes, group: Group, column: int, looks: dict[str, Look]) -> bool:
    """Top-1 of snapshots against steps; the last state filled and large, the best snapshot (the oracle) ringed.

    Returns:
        Whether there was anything to draw.
    """
    drawn = over_steps(axes, group, column, looks, _top1s, markersize=3)
    for look, record, points in drawn:
        if record.top1 is not None:
            axes.plot(points[-1][0], record.top1, marker=look.marker, color=look.colour, markersize=7)
        best = record.oracle
        if best is not None and best.top1 is not None and best.step is not None:
            axes.plot(best.step, best.top1, marker="o", markersize=12, markerfacecolor="none", color=look.colour)
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
    return bool(over_steps(axes, group, column, looks, _homogeneities))


def _top1s(record: Record) -> list[tuple[int | None, float | None]]:
    return [(point.step, point.top1) for point in record.curve or ()]


def _homogeneities(record: Record) -> list[tuple[int | None, float | None]]:
    return [(point.step, point.homogeneity) for point in record.diagnostics.over_training]


def over_steps(
    axes: Axes, group: Group, column: int, looks: dict[str, Look], read: Points, **style: Any
) -> list[tuple[Look, Record, list[tuple[int, float]]]]:
    """One line for each record that holds points, labelled once for each method.

    Args:
        axes: to draw on.
        group: the records.
        column: which of its schemes.
        looks: of the methods.
        read: gets steps and values from a record; points without both are left out.
        style: of the lines, besides the method's look.

    Returns:
        What was drawn: look, record and points.
    """
    drawn = []
    for method in group.methods:
        label: str | None = method.label
        for record in method.places[column]:
            points = sorted((x, y) for x, y in read(record) if x is not None and y is not None)
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
        gaps = [layer.mean_gap for layer in record.diagnostics.layers]
        known = [gap for gap in gaps if gap is not None]
        if known and len(known) == len(gaps):
            found.append(known)
    if not found or len({len(gaps) for gaps in found}) > 1:
        return []
    return [sum(layer) / len(layer) for layer in zip(*found, strict=True)]
