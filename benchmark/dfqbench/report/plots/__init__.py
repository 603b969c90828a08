"""Plots of records, as PNG and SVG, readable in print and by colour-blind people."""
