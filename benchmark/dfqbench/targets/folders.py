"""Data folders: which ones are read, and where files are written."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import platformdirs

from dfqbench.api.errors import InputError

VARIABLE = "DFQBENCH_DATA"
"""Environment variable that names data folders, separated as in PATH."""
DECODED = "DFQBENCH_DECODED"
"""Environment variable that names the folder of decoded images."""


def decoded_folder() -> Path:
    """Return the folder of decoded images."""
    named = os.environ.get(DECODED)
    return Path(named) if named else Path(platformdirs.user_cache_dir("dfqbench", appauthor=False)) / "decoded"


def default_folder() -> Path:
    """Return the folder that `dfqbench fetch` writes to when no other is named."""
    return Path(platformdirs.user_data_dir("dfqbench", appauthor=False))


def data_folders(option: Sequence[Path], environment: Mapping[str, str] | None = None) -> list[Path]:
    """Return data folders in order of precedence: `--data`, DFQBENCH_DATA, the default folder if it holds anything.

    Args:
        option: folders given with `--data`.
        environment: environment variables; None: those of the process.

    Returns:
        Folders, each once. Whether they exist is checked by `Catalogue.discover`.
    """
    folders = [path.expanduser() for path in option] + _named_folders(environment)
    default = default_folder()
    if default.is_dir() and any(default.iterdir()):
        folders.append(default)
    unique: dict[Path, Path] = {}
    for folder in folders:
        unique.setdefault(folder.absolute(), folder)
    return list(unique.values())


def fetch_folder(option: Path | None, environment: Mapping[str, str] | None = None) -> Path:
    """Return the folder that `dfqbench fetch` writes to: `--data`, the first of DFQBENCH_DATA, or the default."""
    return option.expanduser() if option is not None else next(iter(_named_folders(environment)), default_folder())


def _named_folders(environment: Mapping[str, str] | None) -> list[Path]:
    variables = os.environ if environment is None else environment
    folders = []
    for text in variables.get(VARIABLE, "").split(os.pathsep):
        if text.strip():
            try:
                folders.append(Path(text).expanduser())
            except RuntimeError as error:
                raise InputError(
                    f"{VARIABLE}: there is no user of the folder {text}", "write the whole path"
                ) from error
    return folders
