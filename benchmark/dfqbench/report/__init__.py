"""Reports: what the records say, as tables for people and for programs."""

from __future__ import annotations

from dfqbench.report.frame import frame
from dfqbench.report.machine import hardware
from dfqbench.report.table import FORMATS, Format, render

__all__ = ["FORMATS", "Format", "frame", "hardware", "render"]
