"""Which data folders are looked into."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import platformdirs

VARIABLE = "DFQBENCH_DATA"
"""Environment variable that names data folders, separated as in PATH."""


DECODED = "DFQBENCH_DECODED"
"""Environment variable that names the folder of decoded images."""


def decoded_folder() -> Path:
    """Where decoded images are kept."""
    named = os.environ.get(DECODED)
    return Path(named) if named else Path(platformdirs.user_cache_dir("dfqbench", appauthor=False)) / "decoded"


def default_folder() -> Path:
    """Where `dfqbench fetch` puts data when nothing else is named."""
    return Path(platformdirs.user_data_dir("dfqbench", appauthor=False))


def data_folders(option: Sequence[Path], environment: Mapping[str, str] | None = None) -> list[Path]:
    """Data folders in order of precedence: `--data`, DFQBENCH_DATA, the default folder if it holds anything.

    Args:
        option: folders given with `--data`; they come before the others.
        environment: environment variables; None: those of the process.

    Returns:
        Folders, each once. Named ones are not checked here: `Catalogue.discover` does that.
    """
    variables = os.environ if environment is None else environment
    folders = [path.expanduser() for path in option]
    folders += [Path(text).expanduser() for text in variables.get(VARIABLE, "").split(os.pathsep) if text.strip()]
    default = default_folder()
    if default.is_dir() and any(default.iterdir()):
        folders.append(default)
    unique: dict[Path, Path] = {}
    for folder in folders:
        unique.setdefault(folder.absolute(), folder)
    return list(unique.values())


def fetch_folder(option: Path | None, environment: Mapping[str, str] | None = None) -> Path:
    """The folder that `dfqbench fetch` writes to: `--data`, the first of DFQBENCH_DATA, or the default folder."""
    variables = os.environ if environment is None else environment
    if option is not None:
        return option.expanduser()
    named = [text for text in variables.get(VARIABLE, "").split(os.pathsep) if text.strip()]
    return Path(named[0]).expanduser() if named else default_folder()
