"""Grids: experiments as TOML files, and the options of the command line that change them."""

from __future__ import annotations

from dfqbench.grid.load import load_grid
from dfqbench.grid.selectors import apply, parse_selection

__all__ = ["apply", "load_grid", "parse_selection"]
