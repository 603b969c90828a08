"""Plots of records, as PNG and SVG, readable in print and by colour-blind people."""

from __future__ import annotations

from dfqbench.report.plots.draw import KINDS, Plot, draw_plots, saved

__all__ = ["KINDS", "Plot", "draw_plots", "saved"]
