"""What to run: grids as TOML, the presets, the selectors of the command line, and parameters."""

from __future__ import annotations

from dfqbench.grid.choice import REAL, MethodChoice, parse_methods, resolve_methods
from dfqbench.grid.load import GridSource, available_grids, load_grid
from dfqbench.grid.params import build_params, params_dict
from dfqbench.grid.schema import Grid
from dfqbench.grid.selectors import Selection, apply, parse_selection

__all__ = [
    "REAL",
    "Grid",
    "GridSource",
    "MethodChoice",
    "Selection",
    "apply",
    "available_grids",
    "build_params",
    "load_grid",
    "params_dict",
    "parse_methods",
    "parse_selection",
    "resolve_methods",
]
