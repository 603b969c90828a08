"""Reports: records as tables, plots, pictures and one HTML page."""

from __future__ import annotations

from dfqbench.report.frame import frame
from dfqbench.report.hardware import describe_hardware
from dfqbench.report.render import FORMATS, Format, render
from dfqbench.report.tables.pivot import Layout, parse_layout

__all__ = ["FORMATS", "Format", "Layout", "describe_hardware", "frame", "parse_layout", "render"]
