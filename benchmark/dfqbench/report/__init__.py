"""Reports: what the records say, as tables for people and for programs."""

from __future__ import annotations

from dfqbench.report.frame import frame
from dfqbench.report.layout import DIMENSIONS, Layout, parse_layout
from dfqbench.report.machine import hardware
from dfqbench.report.table import FORMATS, Format, render

__all__ = ["DIMENSIONS", "FORMATS", "Format", "Layout", "frame", "hardware", "parse_layout", "render"]
