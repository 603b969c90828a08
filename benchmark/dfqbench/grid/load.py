"""Grid files: the presets, those of plugins, and the user's own."""

from __future__ import annotations

import difflib
from pathlib import Path

from pydantic import ValidationError

from dfqbench.api.errors import InputError, UsageError, unknown_name
from dfqbench.grid.schema import Grid
from dfqbench.plugins import Plugins
from dfqbench.plugins.params import first_problem
from dfqbench.toml_file import read_toml

_EXAMPLES = {
    "name": 'name = "mygrid"',
    "on": 'on = ["cifar10"]',
    "methods": 'methods = ["zeroq", "noise"]',
    "controls": 'controls = "all"',
    "recipe": 'recipe = "dffg"',
    "models": '[models] and below it cifar10 = ["resnet20"]',
    "schemes": 'schemes = ["w4a4", "w3a3@deploy"]',
    "mixed": 'mixed = "size=4bit"',
    "seeds": "seeds = [0, 1, 2]",
    "threads": "threads = 2",
    "precision": 'precision = "float32"',
    "limit": "limit = 1000",
    "absent": '[absent] and below it qimera = "Choi et al., NeurIPS 2021: no plugin offers it"',
}
"""Example of each key, for messages."""


def grid_path(name_or_path: str, plugins: Plugins) -> Path:
    """Return the file of a grid.

    Args:
        name_or_path: a preset's or a plugin grid's name, or the path of a TOML file.
        plugins: the loaded plugins.

    Raises:
        UsageError: the name is unknown.
    """
    if name_or_path in plugins.grids:
        return plugins.grids[name_or_path].path
    if name_or_path.endswith(".toml") or len(Path(name_or_path).parts) > 1:
        return Path(name_or_path)
    error = unknown_name("grid", name_or_path, plugins.grids)
    raise UsageError(error.message, f"{error.hint}; or give the path of a .toml file")


def load_grid(name_or_path: str | Path, plugins: Plugins) -> Grid:
    """Read a grid by name or path, as `grid_path` takes them.

    Raises:
        UsageError: the name is unknown.
        InputError: the file does not exist, is no TOML, or has a wrong key or value; the message names both.
    """
    return read_grid(grid_path(str(name_or_path), plugins))


def read_grid(path: Path) -> Grid:
    """Read a grid file.

    Raises:
        InputError: as :func:`load_grid`.
    """
    try:
        data = read_toml(path)
    except InputError as error:
        raise InputError(f"grid file {error.message}", f"{error.hint}; `dfqbench grids list` names grids") from error
    data.setdefault("name", path.stem)
    try:
        return Grid.model_validate(data)
    except ValidationError as error:
        message, hint = _explained(error)
        raise InputError(f"grid file {path}: {message}", hint) from error


def _explained(error: ValidationError) -> tuple[str, str]:
    """Return message and hint of the first problem of a grid file."""
    problem = error.errors(include_url=False)[0]
    key, message = first_problem(error)
    if problem["type"] == "extra_forbidden":
        names = sorted(field.alias or name for name, field in Grid.model_fields.items())
        near = difflib.get_close_matches(str(problem["loc"][-1]), names, n=1)
        return f"unknown key '{key}'", f"{f'did you mean {near[0]}? ' if near else ''}valid: {', '.join(names)}"
    own = problem.get("ctx", {}).get("error")
    if own is not None:
        # Raised by a validator of `Grid`, with a hint in its message.
        return f"key '{key}': {own}" if key else str(own), ""
    example = _EXAMPLES.get(key.partition(".")[0])
    hint = f"write for example {example}" if example else "correct the file"
    if problem["type"] == "missing":
        return f"key '{key}' is missing", hint
    if problem["type"] == "too_short":
        return f"key '{key}' is empty", hint
    return f"key '{key}': {message}, not {problem['input']!r}", hint
