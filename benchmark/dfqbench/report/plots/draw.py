"""Drawing: every plot that records give, and their files."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dfqbench.api.errors import unknown_name
from dfqbench.report.plots.accuracy import accuracy_by_bits, accuracy_by_time
from dfqbench.report.plots.curves import homogeneity_curves, layer_curves, learning_curves
from dfqbench.report.plots.groups import BY_BITS, BY_SCHEME, Group, groups
from dfqbench.report.plots.style import RC, Look, looks
from dfqbench.report.plots.time import time_by_phase
from dfqbench.run.store.record import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

KINDS = {
    "bits": "Accuracy against bits",
    "time": "Accuracy against time",
    "phases": "Time by phase",
    "curves": "Learning curves",
    "homogeneity": "Homogeneity of images over training",
    "layers": "Distance to BatchNorm statistics by layer",
}
"""Kinds of plots, and their titles."""
ONCE = frozenset({"layers"})
"""Kinds that are drawn for the first scheme only: they are of images, which seldom depend on it."""
WIDTH, HEIGHT = 6.4, 3.6
"""Inches."""
_BY_SCHEME: dict[str, Callable[[Axes, Group, int, dict[str, Look]], bool]] = {
    "time": accuracy_by_time,
    "phases": time_by_phase,
    "curves": learning_curves,
    "homogeneity": homogeneity_curves,
    "layers": layer_curves,
}
"""What draws a kind for one scheme; it says whether there was anything to draw."""


@dataclass(frozen=True, slots=True)
class Plot:
    """One plot.

    Attributes:
        kind: one of `KINDS`.
        title: kind, target, network and budget in words; also what says it to those who do not see it.
        name: for files.
        figure: matplotlib's.
    """

    kind: str
    title: str
    name: str
    figure: Figure

    def drawn(self, form: Literal["png", "svg"]) -> bytes:
        """The plot as a file's content; the same records always give the same bytes."""
        import matplotlib as mpl

        stream = io.BytesIO()
        metadata = {"Date": None, "Creator": None} if form == "svg" else {"Software": None}
        settings: Any = dict(RC)
        with mpl.rc_context(settings):
            self.figure.savefig(stream, format=form, metadata=metadata, bbox_inches="tight")
        return stream.getvalue()


def draw_plots(records: Sequence[Record], kinds: Iterable[str] = tuple(KINDS)) -> list[Plot]:
    """Draws every plot for which records hold something.

    Args:
        records: of one run or more.
        kinds: which ones.

    Raises:
        UsageError: a kind is unknown.
    """
    import matplotlib as mpl

    wanted = list(dict.fromkeys(kinds))
    for kind in wanted:
        if kind not in KINDS:
            raise unknown_name("plot", kind, KINDS)
    by_bits, by_scheme = groups(records, BY_BITS), groups(records, BY_SCHEME)
    names = [(method.label, method.control) for group in by_scheme for method in group.methods]
    styles = looks(sorted(set(names), key=lambda entry: (entry[1], entry[0])))
    settings: Any = dict(RC)
    with mpl.rc_context(settings):
        found = [plot for kind in wanted for plot in _of_kind(kind, by_bits if kind == "bits" else by_scheme, styles)]
    taken: dict[str, int] = {}
    numbered = []
    for plot in found:
        taken[plot.name] = taken.get(plot.name, 0) + 1
        again = f"-{taken[plot.name]}" if taken[plot.name] > 1 else ""
        numbered.append(Plot(plot.kind, plot.title, plot.name + again, plot.figure))
    return numbered


def _of_kind(kind: str, found: Sequence[Group], styles: dict[str, Look]) -> Iterator[Plot]:
    for group in found:
        if kind == "bits":
            if len(group.columns) > 1:
                figure, axes = _figure(HEIGHT)
                accuracy_by_bits(axes, group, styles)
                yield _finished(kind, group.title, figure, axes)
            continue
        for column, scheme in enumerate(group.columns):
            figure, axes = _figure(0.9 + 0.26 * len(group.methods) if kind == "phases" else HEIGHT)
            if _BY_SCHEME[kind](axes, group, column, styles):
                yield _finished(kind, f"{group.title}, {scheme}", figure, axes)
                if kind in ONCE:
                    break


def _figure(height: float) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height))
    return figure, figure.subplots()


def _finished(kind: str, title: str, figure: Figure, axes: Axes) -> Plot:
    axes.set_title(title, loc="left")
    if axes.get_legend_handles_labels()[1]:
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0.0)
    name = re.sub(r"[^a-z0-9]+", "-", f"{kind} {title}".lower()).strip("-")
    return Plot(kind, f"{KINDS[kind]}: {title}", name[:100], figure)


def saved(plots: Iterable[Plot], folder: Path) -> list[Path]:
    """Writes plots as PNG and SVG.

    Args:
        plots: to write.
        folder: is made where it is not there.

    Returns:
        The files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for plot in plots:
        for form in ("png", "svg"):
            file = folder / f"{plot.name}.{form}"
            temporary = file.with_suffix(f".{form}.part")
            temporary.write_bytes(plot.drawn(form))
            files.append(temporary.replace(file))
    return files
