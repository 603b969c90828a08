"""Drawing: every plot that records allow, and their files."""

from __future__ import annotations

import dataclasses
import io
import itertools
import re
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dfqbench.api.errors import unknown_name
from dfqbench.report.plots import charts
from dfqbench.report.plots.groups import BY_BITS, BY_SCHEME, Group, about_bars, groups
from dfqbench.report.plots.style import RC, Look, shared_looks
from dfqbench.report.tables.labels import fidelity_notes
from dfqbench.run.store.record import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Chart = Callable[["Axes", Group, int, dict[str, Look]], bool]
KINDS: dict[str, tuple[str, Chart]] = {
    "bits": ("Accuracy against bits", charts.accuracy_by_bits),
    "time": ("Accuracy against time", charts.accuracy_by_time),
    "phases": ("Time by phase", charts.time_by_phase),
    "curves": ("Learning curves", charts.learning_curves),
    "homogeneity": ("Homogeneity of images over training", charts.homogeneity_curves),
    "layers": ("Distance to BatchNorm statistics by layer", charts.layer_curves),
}
"""Kinds of plots: title, and what draws it."""
WIDTH, HEIGHT = 6.4, 3.6  # inches


@dataclass(frozen=True, slots=True)
class Plot:
    """One plot."""

    kind: str  # one of `KINDS`
    title: str  # kind, target, network and budget in words; also the image's alternative text
    name: str  # for files
    figure: Figure

    def encode(self, form: Literal["png", "svg"]) -> bytes:
        """Return the plot as a file's content; the same records always give the same bytes."""
        import matplotlib as mpl

        stream = io.BytesIO()
        metadata = {"Date": None, "Creator": None} if form == "svg" else {"Software": None}
        with mpl.rc_context(RC):
            self.figure.savefig(stream, format=form, metadata=metadata, bbox_inches="tight")
        return stream.getvalue()


def draw_plots(records: Sequence[Record], kinds: Iterable[str] = tuple(KINDS)) -> list[Plot]:
    """Draw every plot of these kinds for which the records of one run or more hold something.

    Raises:
        UsageError: a kind is unknown.
    """
    return list(iter_plots(records, kinds))


def iter_plots(records: Sequence[Record], kinds: Iterable[str] = tuple(KINDS)) -> Iterator[Plot]:
    """Draw the same plots one after the other, each when the caller takes it."""
    import matplotlib as mpl

    chosen = list(dict.fromkeys(kinds))
    for kind in chosen:
        if kind not in KINDS:
            raise unknown_name("plot", kind, KINDS)
    by_bits, by_scheme = groups(records, BY_BITS), groups(records, BY_SCHEME)
    styles = shared_looks(by_scheme)
    names: Counter[str] = Counter()
    drawn = itertools.chain.from_iterable(
        _draw_kind(kind, by_bits if kind == "bits" else by_scheme, styles) for kind in chosen
    )
    while True:
        # The style holds while a plot is drawn, not for the caller.
        with mpl.rc_context(RC):
            plot = next(drawn, None)
        if plot is None:
            return
        names[plot.name] += 1
        number = f"-{names[plot.name]}" if names[plot.name] > 1 else ""
        yield dataclasses.replace(plot, name=plot.name + number)


def _draw_kind(kind: str, compared: Sequence[Group], styles: dict[str, Look]) -> Iterator[Plot]:
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    heading, draw = KINDS[kind]
    for group in compared:
        columns = list(range(len(group.columns)))
        # All widths are in one plot of bits, a panel each; other kinds have a plot for each scheme.
        for panels in [columns] if kind == "bits" else [[column] for column in columns]:
            height = 0.9 + 0.26 * len(group.methods) if kind == "phases" else HEIGHT
            figure = Figure(figsize=(max(WIDTH, 1.6 * len(panels)), height))
            axes = figure.subplots(1, len(panels), squeeze=False, gridspec_kw={"wspace": 0.35})[0]
            drawn = [draw(panel, group, column, styles) for panel, column in zip(axes, panels, strict=True)]
            if not all(drawn):
                continue
            title = group.title if kind == "bits" else f"{group.title}, {group.columns[panels[0]]}"
            axes[0].set_title(f"{heading}\n{title}", loc="left")
            entries = {
                label: handle
                for panel in axes
                for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
            }
            if entries:
                note = about_bars(group) if kind in {"bits", "time"} else None
                for text in fidelity_notes(method.label for method in group.methods):
                    entries[textwrap.fill(text, 30)] = Line2D([], [], linestyle="none")
                beside: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.01, 1.0), "borderaxespad": 0.0}
                axes[-1].legend(entries.values(), entries.keys(), title=note, **beside)
            name = re.sub(r"[^a-z0-9]+", "-", f"{kind} {title}".lower()).strip("-")
            yield Plot(kind, f"{heading}: {title}", name[:100], figure)
            # Distances to BatchNorm statistics are of images, which seldom depend on the scheme: one plot is enough.
            if kind == "layers":
                break


def save_plots(plots: Iterable[Plot], folder: Path) -> list[Path]:
    """Write plots as PNG and SVG into a folder, which is made if missing.

    Returns:
        The files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for plot in plots:
        for form in ("png", "svg"):
            file = folder / f"{plot.name}.{form}"
            temporary = file.with_suffix(f".{form}.part")
            temporary.write_bytes(plot.encode(form))
            files.append(temporary.replace(file))
    return files
