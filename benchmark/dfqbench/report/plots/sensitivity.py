"""The plot of a network's sensitivity: what rounding each layer alone costs, by width."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dfqbench.report.plots.draw import WIDTH, Plot
from dfqbench.report.plots.style import COLOURS, GRID, MARKERS, RC

if TYPE_CHECKING:
    from dfqbench.quantizers.mixed_precision import LayerSensitivity


def draw_sensitivity(layers: Sequence[LayerSensitivity], bits: Sequence[int], title: str) -> Plot:
    """Draw a line of points for each width over the layers, from top to bottom in the given order.

    Args:
        layers: of one network, each with the same widths.
        bits: the widths.
        title: network and images in words.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    heading = "KL divergence of the answers when one layer's weights are rounded"
    with mpl.rc_context(RC):
        figure = Figure(figsize=(WIDTH, 1.2 + 0.18 * len(layers)))
        axes = figure.subplots()
        rows = range(len(layers))
        for width, colour, marker in zip(bits, COLOURS, MARKERS, strict=False):
            # A logarithmic axis has no 0, which a layer without any effect would need.
            values = [layer.omega[width] or float("nan") for layer in layers]
            axes.plot(values, rows, color=colour, marker=marker, linewidth=0.8, label=f"{width} bits")
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set_yticks(rows, [layer.name for layer in layers])
        axes.invert_yaxis()
        axes.grid(visible=True, **GRID)
        axes.set_xlabel("KL divergence; right: costs more accuracy")
        axes.set_title(f"{heading}\n{title}", loc="left")
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0.0)
    return Plot("sensitivity", f"{heading}: {title}", "sensitivity", figure)
