"""Grid files: the presets, those of plugins, and the user's own."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pydantic import ValidationError

from dfqbench.api.errors import InputError, UsageError, unknown_name
from dfqbench.grid.presets import preset_names, preset_path
from dfqbench.grid.schema import Grid
from dfqbench.toml_file import read_toml

_EXAMPLES = {
    "name": 'name = "mygrid"',
    "on": 'on = ["cifar10"]',
    "methods": 'methods = ["zeroq", "noise"]',
    "models": '[models] and below it cifar10 = ["resnet20"]',
    "schemes": 'schemes = ["w4a4", "w3a3@deploy"]',
    "seeds": "seeds = [0, 1, 2]",
    "threads": "threads = 2",
    "precision": 'precision = "float32"',
    "limit": "limit = 1000",
}
"""How a key is written, for messages."""


class GridOffer(Protocol):
    """A grid file that a plugin offers; `LoadedFile` is one."""

    @property
    def path(self) -> Path:
        """The TOML file."""
        ...

    @property
    def origin(self) -> str:
        """The plugin's distribution or file."""
        ...

    @property
    def version(self) -> str:
        """The distribution's version, or empty."""
        ...


class GridOffers(Protocol):
    """The grids that plugins offer; `Plugins` is one."""

    @property
    def grids(self) -> Mapping[str, GridOffer]:
        """Grid files by name."""
        ...


@dataclass(frozen=True, slots=True)
class GridSource:
    """A grid that can be named.

    Attributes:
        name: what to give to `--grid`.
        path: its TOML file.
        origin: `dfqbench`, or the plugin that brought it.
    """

    name: str
    path: Path
    origin: str


def available_grids(plugins: GridOffers) -> dict[str, GridSource]:
    """Presets and the grids of plugins, by name."""
    found = {name: GridSource(name, preset_path(name), "dfqbench") for name in preset_names()}
    for name, file in plugins.grids.items():
        found[name] = GridSource(name, file.path, f"{file.origin} {file.version}".rstrip())
    return found


def load_grid(name_or_path: str | Path, plugins: GridOffers) -> Grid:
    """Reads a grid.

    Args:
        name_or_path: a preset's or a plugin grid's name, or the path of a TOML file.
        plugins: what is loaded.

    Raises:
        UsageError: the name is unknown.
        InputError: the file does not exist, is no TOML, or has a wrong key or value; the message names both.
    """
    text = str(name_or_path)
    known = available_grids(plugins)
    if text in known:
        return read_grid(known[text].path)
    if text.endswith(".toml") or len(Path(text).parts) > 1:
        return read_grid(Path(text))
    error = unknown_name("grid", text, known)
    raise UsageError(error.message, f"{error.hint}; or give the path of a .toml file")


def read_grid(path: Path) -> Grid:
    """Reads a grid file.

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
        raise InputError(f"grid file {path}: {_first(error)}", _hint(error)) from error


def _first(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"unknown key '{key}'"
    if first["type"] == "missing":
        return f"key '{key}' is missing"
    wrong = first.get("ctx", {}).get("error")
    if wrong is not None:
        # Raised by a validator of ours, which says what was given.
        return f"key '{key}': {wrong}" if key else str(wrong)
    if first["type"] == "too_short":
        return f"key '{key}' is empty"
    return f"key '{key}': {_lowered(first['msg'])}, not {first['input']!r}"


def _hint(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    if first.get("ctx", {}).get("error") is not None:
        return ""
    if first["type"] == "extra_forbidden":
        names = sorted(field.alias or name for name, field in Grid.model_fields.items())
        near = difflib.get_close_matches(str(first["loc"][-1]), names, n=1)
        return f"{f'did you mean {near[0]}? ' if near else ''}valid: {', '.join(names)}"
    key = str(first["loc"][0]) if first["loc"] else ""
    return f"write for example {_EXAMPLES[key]}" if key in _EXAMPLES else "correct the file"


def _lowered(text: str) -> str:
    flat = " ".join(text.split())
    return flat[:1].lower() + flat[1:]
