"""Accuracy against bits, and against the time that it costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dfqbench.report.columns import total_seconds
from dfqbench.report.plots.groups import Group, mean_and_deviation
from dfqbench.report.plots.style import GRID, Look
from dfqbench.report.values import duration

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def accuracy_by_bits(axes: Axes, group: Group, looks: dict[str, Look]) -> None:
    """Top-1 of each method at each width, deviation over seeds as bars, full precision as a line."""
    positions = range(len(group.columns))
    for method in group.methods:
        found = [mean_and_deviation(place, lambda record: record.top1) for place in method.places]
        points = [(x, *entry) for x, entry in zip(positions, found, strict=True) if entry is not None]
        if points:
            xs, means, deviations = zip(*points, strict=True)
            axes.errorbar(xs, means, deviations, label=method.label, capsize=2, **looks[method.label].keywords)
    if group.full is not None:
        axes.axhline(group.full, color="black", linewidth=0.8, linestyle=":", label=f"full precision {group.full:.2f}")
    axes.set_xticks(list(positions), list(group.columns))
    axes.set_xlim(-0.3, len(group.columns) - 0.7)
    axes.set_ylabel("top-1 (%)")
    axes.set_xlabel("bits of weights and activations")
    axes.grid(axis="y", **GRID)


def accuracy_by_time(axes: Axes, group: Group, column: int, looks: dict[str, Look]) -> bool:
    """Top-1 of each method against seconds of synthesis and quantization, with the front of the competitors.

    Returns:
        Whether there was anything to draw.
    """
    from matplotlib.ticker import LogLocator

    candidates, drawn = [], False
    for method in group.methods:
        place = method.places[column]
        accuracy = mean_and_deviation(place, lambda record: record.top1)
        seconds = mean_and_deviation(place, total_seconds)
        if accuracy is None or seconds is None or seconds[0] <= 0:
            continue
        keywords = looks[method.label].keywords | {"linestyle": "none"}
        axes.errorbar(seconds[0], accuracy[0], accuracy[1], label=method.label, capsize=2, **keywords)
        drawn = True
        if not method.control:
            candidates.append((seconds[0], accuracy[0]))
    front = pareto(candidates)
    if len(front) > 1:
        axes.step(
            *zip(*front, strict=True), where="post", color="#555555", linewidth=0.8, zorder=0, label="Pareto front"
        )
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(lambda seconds, _: duration(seconds).replace(".0 ", " "))
    axes.xaxis.set_minor_formatter(lambda *_: "")
    axes.set_xlabel("synthesis and quantization")
    axes.set_ylabel("top-1 (%)")
    axes.grid(**GRID)
    return drawn


def pareto(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points (time, accuracy) than which none is both faster and better, fastest first."""
    front: list[tuple[float, float]] = []
    for seconds, accuracy in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or accuracy > front[-1][1]:
            front.append((seconds, accuracy))
    return front
