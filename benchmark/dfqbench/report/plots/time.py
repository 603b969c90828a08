"""Where the time goes: phases as stacked bars."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from dfqbench.report.plots.groups import Group, mean_and_deviation
from dfqbench.report.plots.style import GRID, HATCHES, PHASE_COLOURS, Look
from dfqbench.report.values import duration
from dfqbench.run.store.record import Record, Seconds

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PHASES: Mapping[str, Callable[[Seconds], float | None]] = {
    "setup": lambda seconds: seconds.setup,
    "synthesis": lambda seconds: seconds.synthesis,
    "quantization": lambda seconds: seconds.quantization,
    "evaluation": lambda seconds: seconds.evaluation,
    "unattributed": lambda seconds: seconds.unattributed,
}


def time_by_phase(axes: Axes, group: Group, column: int, _: dict[str, Look]) -> bool:
    """One bar a method: seconds of each phase, mean over seeds, synthesis as it costs alone.

    Returns:
        Whether there was anything to draw.
    """
    labels, ends = [], []
    shown = [method for method in group.methods if any(_timed(record) for record in method.places[column])]
    for at, method in enumerate(reversed(shown)):
        begin = 0.0
        for phase, colour, hatch in zip(PHASES, PHASE_COLOURS, HATCHES, strict=True):
            seconds = max(0.0, _mean(method.places[column], phase))
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
    axes.set_xlabel("seconds")
    axes.grid(axis="x", **GRID)
    axes.set_axisbelow(True)
    return bool(labels)


def _timed(record: Record) -> bool:
    return any(read(record.seconds) is not None for read in PHASES.values())


def _mean(records: Sequence[Record], phase: str) -> float:
    found = mean_and_deviation(records, lambda record: PHASES[phase](record.seconds))
    return 0.0 if found is None else found[0]
