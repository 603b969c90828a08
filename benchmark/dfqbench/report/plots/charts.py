"""Charts: what is drawn on the axes of each kind of plot. Each returns whether there was anything to draw."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from dfqbench.report.formatting import duration
from dfqbench.report.metrics import in_cpu_seconds, shown_seconds, total_seconds
from dfqbench.report.plots import scales
from dfqbench.report.plots.groups import Group, mean_and_deviation, top1_and_bar
from dfqbench.report.plots.style import GRID, HATCHES, PHASE_COLOURS, Look
from dfqbench.run.store.record import Record
from dfqbench.run.store.status import CPU_SHARED

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PHASES = ("setup", "synthesis", "quantization", "evaluation", "unattributed")
Points = list[tuple[int | None, float | None]]  # steps and values


def accuracy_by_bits(axes: Axes, group: Group, column: int, looks: dict[str, Look]) -> bool:
    """Draw top-1 of each method at one width, on an axis of its own: one for all widths would hide what differs."""
    ends: list[float] = []
    for at, method in enumerate(group.methods):
        numbers = top1_and_bar(method.places[column])
        if numbers is not None:
            keywords = looks[method.label].keywords | {"linestyle": "none"}
            axes.errorbar(at, *numbers, label=method.label, capsize=2, **keywords)
            ends += bar_ends(*numbers)
    low, high = scales.accuracy_span(ends)
    if group.full is not None and low <= group.full <= high:
        axes.axhline(group.full, color="black", linewidth=0.8, linestyle=":", label=f"full precision {group.full:.2f}")
    axes.set_ylim(low, high)
    axes.set_xlim(-0.7, len(group.methods) - 0.3)
    axes.set_xticks([])
    _label(axes, group.columns[column], "" if column else "top-1 (%)", "y")
    return len(group.columns) > 1


def accuracy_by_time(axes: Axes, group: Group, column: int, looks: dict[str, Look]) -> bool:
    """Draw top-1 of each method against seconds of synthesis and quantization, with the competitors' Pareto front."""
    from matplotlib.ticker import FixedLocator

    times: list[float] = []
    ends: list[float] = []
    candidates: list[tuple[float, float]] = []
    for method in group.methods:
        point = time_and_top1(method.places[column])
        if point is None:
            continue
        seconds, mean, bar = point
        keywords = looks[method.label].keywords | {"linestyle": "none"}
        axes.errorbar(seconds, mean, bar, label=method.label, capsize=2, **keywords)
        times.append(seconds)
        ends += bar_ends(mean, bar)
        if not method.control:
            candidates.append((seconds, mean))
    front = pareto(candidates)
    if len(front) > 1:
        line: dict[str, Any] = {"color": "#555555", "linewidth": 0.8, "zorder": 0, "label": "Pareto front"}
        axes.step(*zip(*front, strict=True), where="post", **line)
    axes.set_xscale("log")
    low, high = scales.time_span(times)
    axes.set_xlim(low, high)
    axes.set_ylim(*scales.accuracy_span(ends))
    axes.xaxis.set_major_locator(FixedLocator(scales.time_ticks(low, high)))
    axes.xaxis.set_major_formatter(lambda seconds, _: tick_label(seconds))
    axes.xaxis.set_minor_locator(FixedLocator([]))
    _label(axes, "synthesis and quantization" + cpu_note(group, column), "top-1 (%)")
    return bool(times)


def time_and_top1(records: Sequence[Record]) -> tuple[float, float, float] | None:
    """Return mean seconds, mean top-1 and its error bar; None where there is nothing to draw."""
    numbers, seconds = top1_and_bar(records), mean_and_deviation(records, total_seconds)
    return None if numbers is None or seconds is None or seconds[0] <= 0 else (seconds[0], *numbers)


def bar_ends(mean: float, bar: float) -> tuple[float, ...]:
    """Return the ends of an error bar; the mean alone where there is none."""
    return (mean,) if math.isnan(bar) else (mean - bar, mean + bar)


def tick_label(seconds: float) -> str:
    """Return a round time in the largest unit that it fills, such as `30 s` or `1 min`."""
    scale, unit = next((scale, unit) for scale, unit in ((3600, "h"), (60, "min"), (0, "s")) if seconds >= scale)
    return f"{seconds / (scale or 1):g} {unit}"


def pareto(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the points (time, accuracy) than which none is both faster and better, fastest first."""
    front: list[tuple[float, float]] = []
    for seconds, accuracy in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or accuracy > front[-1][1]:
            front.append((seconds, accuracy))
    return front


def time_by_phase(axes: Axes, group: Group, column: int, _: dict[str, Look]) -> bool:
    """Draw one bar a method: seconds of each phase, mean over seeds, synthesis at its stand-alone cost."""
    ends: dict[str, float] = {}
    for method in reversed(group.methods):
        means = [mean_and_deviation(method.places[column], partial(_phase_seconds, phase=phase)) for phase in PHASES]
        if not any(means):
            continue
        at, begin = len(ends), 0.0
        for phase, mean, colour, hatch in zip(PHASES, means, PHASE_COLOURS, HATCHES, strict=True):
            seconds = max(0.0, mean[0]) if mean else 0.0
            bar: dict[str, Any] = {"color": colour, "hatch": hatch, "edgecolor": "#333333", "linewidth": 0.5}
            axes.barh(at, seconds, left=begin, label=phase if at == 0 else None, **bar)
            begin += seconds
        axes.annotate(f" {duration(begin)}", (begin, at), va="center", fontsize=7)
        ends[method.label] = begin
    axes.set_yticks(range(len(ends)), list(ends))
    axes.set_xlim(0, 1.15 * max(ends.values(), default=1.0) or 1.0)
    _label(axes, "seconds" + cpu_note(group, column), "", "x")
    axes.set_axisbelow(True)
    return bool(ends)


def _phase_seconds(record: Record, phase: str) -> float | None:
    spent = shown_seconds(record) if phase in {"synthesis", "quantization"} else record.seconds
    seconds: float | None = getattr(spent, phase)
    return seconds


def cpu_note(group: Group, column: int) -> str:
    """Return what the label of an axis adds where cells beside others on the CPU show CPU seconds."""
    shared = any(in_cpu_seconds(record) for method in group.methods for record in method.places[column])
    return f" ({CPU_SHARED}: CPU seconds)" if shared else ""


def learning_curves(axes: Axes, group: Group, column: int, looks: dict[str, Look]) -> bool:
    """Draw top-1 of snapshots against steps; the last state filled and large, the best snapshot (the oracle) ringed."""
    ring: dict[str, Any] = {"markersize": 12, "markerfacecolor": "none"}
    drawn = _over_steps(axes, group, column, looks, name="top-1 (%)", read=_snapshots, markersize=3)
    for look, record, last_step in drawn:
        if record.top1 is not None:
            axes.plot(last_step, record.top1, marker=look.marker, color=look.colour, markersize=7)
        best = record.oracle
        if best is not None and best.top1 is not None and best.step is not None:
            axes.plot(best.step, best.top1, marker="o", color=look.colour, **ring)
    if drawn:
        axes.plot([], [], "o", color="#555555", markersize=7, label="last state (the result)")
        axes.plot([], [], "o", color="#555555", label="oracle (best snapshot)", **ring)
    return bool(drawn)


def homogeneity_curves(axes: Axes, group: Group, column: int, looks: dict[str, Look]) -> bool:
    """Draw homogeneity of a live source's images against steps of its training."""
    return bool(_over_steps(axes, group, column, looks, name="cosine similarity of features", read=_homogeneity))


def _snapshots(record: Record) -> Points:
    return [(snapshot.step, snapshot.top1) for snapshot in record.curve or ()]


def _homogeneity(record: Record) -> Points:
    return [(point.step, point.homogeneity) for point in record.diagnostics.over_training]


def _over_steps(
    axes: Axes,
    group: Group,
    column: int,
    looks: dict[str, Look],
    *,
    name: str,
    read: Callable[[Record], Points],
    **style: Any,
) -> list[tuple[Look, Record, int]]:
    """Draw a line for each record with points, labelled once a method; return look, record and last step of each."""
    drawn = []
    for method in group.methods:
        label: str | None = method.label
        look = looks[method.label]
        for record in method.places[column]:
            points = sorted((x, y) for x, y in read(record) if x is not None and y is not None)
            if points:
                axes.plot(*zip(*points, strict=True), label=label, **look.keywords | style)
                drawn.append((look, record, points[-1][0]))
                label = None
    _whole_steps(axes)
    _label(axes, "step", name)
    return drawn


def _label(axes: Axes, x: str, y: str, grid: Literal["both", "x", "y"] = "both") -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(axis=grid, **GRID)


def _whole_steps(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def layer_curves(axes: Axes, group: Group, column: int, looks: dict[str, Look]) -> bool:
    """Draw the distance of the images' means to the BatchNorm layers', in standard deviations, layer by layer."""
    gaps = {method.label: _layer_gaps(method.places[column]) for method in group.methods}
    for label, means in gaps.items():
        if means:
            axes.plot(range(1, len(means) + 1), means, label=label, **looks[label].keywords)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(lambda gap, _: f"{gap:g}" if f"{gap:e}"[0] in "25" else "")
    _whole_steps(axes)
    _label(axes, "BatchNorm layer, in order of execution", "gap of means (standard deviations)")
    return any(gaps.values())


def _layer_gaps(records: Sequence[Record]) -> list[float]:
    """Return the mean over seeds of each layer's gap; empty where records differ in their layers."""
    seeds = []
    for record in records:
        gaps = [layer.mean_gap for layer in record.diagnostics.layers]
        known = [gap for gap in gaps if gap is not None]
        if known and len(known) == len(gaps):
            seeds.append(known)
    if len({len(gaps) for gaps in seeds}) != 1:
        return []
    return [sum(layer) / len(layer) for layer in zip(*seeds, strict=True)]
