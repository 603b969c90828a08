"""Plot style: one colour, marker and line for each method in all plots; readable in grey and by colour-blind people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any

from dfqbench.report.plots.groups import Group

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D31")
"""Okabe and Ito's palette (yellow, which no paper shows, replaced by brown)."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LINES = ("-", "--", "-.", (0, (1, 1)), (0, (5, 1, 1, 1, 1, 1)), (0, (3, 1, 1, 1)))
CONTROL_COLOURS = ("#6E6E6E", "#A0A0A0", "#4A4A4A", "#C0C0C0")
CONTROL_LINES = ((0, (2, 2)),)
HATCHES = ("", "///", "...", "xxx", "\\\\\\")
PHASE_COLOURS = ("#DDDDDD", "#56B4E9", "#E69F00", "#009E73", "#FFFFFF")
GRID: Mapping[str, Any] = {"color": "#DDDDDD", "linewidth": 0.6}

RC: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "legend.frameon": False,
    "legend.fontsize": 7.5,
    "legend.title_fontsize": 7,
    "lines.linewidth": 1.3,
    "lines.markersize": 5,
    "hatch.linewidth": 0.5,
    # Names come from records: they are text, never formulas.
    "text.parse_math": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "dfqbench",
    "figure.dpi": 100,
    "savefig.dpi": 200,
}


@dataclass(frozen=True, slots=True)
class Look:
    """How a method is drawn, in matplotlib's terms."""

    colour: str
    marker: str
    line: Any
    hollow: bool  # whether markers are empty: a control

    @property
    def keywords(self) -> dict[str, Any]:
        """For `plot` and `errorbar`."""
        face = "white" if self.hollow else self.colour
        return {"color": self.colour, "marker": self.marker, "linestyle": self.line, "markerfacecolor": face}


def shared_looks(groups: Iterable[Group]) -> dict[str, Look]:
    """Return one look for each method of all groups, whichever of them are drawn."""
    methods = {(method.control, method.label) for group in groups for method in group.methods}
    return looks((label, control) for control, label in sorted(methods))


def looks(methods: Iterable[tuple[str, bool]]) -> dict[str, Look]:
    """Return a look for every method, of its label and whether it is a control."""
    made: dict[str, Look] = {}
    positions = {False: count(), True: count()}
    for label, control in methods:
        if label not in made:
            at = next(positions[control])
            colours, lines = (CONTROL_COLOURS, CONTROL_LINES) if control else (COLOURS, LINES)
            made[label] = Look(
                colours[at % len(colours)], MARKERS[at % len(MARKERS)], lines[at % len(lines)], hollow=control
            )
    return made
