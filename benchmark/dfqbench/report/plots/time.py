"""Where the time goes: phases as stacked bars."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dfqbench.report.plots.groups import Group, mean_and_deviation
from dfqbench.report.plots.style import GRID, HATCHES, PHASE_COLOURS
from dfqbench.report.values import Record, duration, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PHASES = ("setup", "synthesis", "quantization", "evaluation", "unattributed")


def time_by_phase(axes: Axes, group: Group) -> None:
    """One bar a method: mean seconds of each phase over its cells, synthesis as it costs alone."""
    labels, ends = [], []
    for at, method in enumerate(reversed(group.methods)):
        records = [record for place in method.places for record in place]
        begin = 0.0
        for phase, colour, hatch in zip(PHASES, PHASE_COLOURS, HATCHES, strict=True):
            seconds = max(0.0, _mean(records, phase))
            name = phase if at == 0 else None
            axes.barh(
                at, seconds, left=begin, color=colour, hatch=hatch, edgecolor="#333333", linewidth=0.5, label=name
            )
            begin += seconds
        axes.annotate(f" {duration(begin)}", (begin, at), va="center", fontsize=7)
        labels.append(method.label)
        ends.append(begin)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_xlim(0, 1.15 * max(ends, default=1.0) or 1.0)
    axes.set_xlabel("seconds, mean over cells")
    axes.grid(axis="x", **GRID)
    axes.set_axisbelow(True)


def _mean(records: list[Record], phase: str) -> float:
    found = mean_and_deviation(records, lambda record: number(record, f"seconds.{phase}"))
    return 0.0 if found is None else found[0]
