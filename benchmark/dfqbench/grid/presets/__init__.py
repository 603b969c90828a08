"""The grids that come with dfqbench, one TOML file each."""

from __future__ import annotations

from pathlib import Path

_FOLDER = Path(__file__).parent


def preset_names() -> tuple[str, ...]:
    """Names of the presets, sorted."""
    return tuple(sorted(file.stem for file in _FOLDER.glob("*.toml")))


def preset_path(name: str) -> Path:
    """The file of a preset."""
    return _FOLDER / f"{name}.toml"
