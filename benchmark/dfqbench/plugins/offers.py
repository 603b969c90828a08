"""Loaded offers with their origin, and broken plugins with their errors."""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from pathlib import Path

from dfqbench.api.errors import DfqError


@dataclass(frozen=True, slots=True)
class Origin:
    """The origin of a plugin.

    Attributes:
        name: the entry point's name; for a local file, its stem.
        origin: the distribution's name, or the path of the local file.
        version: the distribution's version; empty for a local file.
        path: the local file, or None for an installed plugin.
    """

    name: str
    origin: str
    version: str
    path: Path | None = None

    def __str__(self) -> str:
        return f"{self.origin} {self.version}".rstrip()


@dataclass(frozen=True, slots=True)
class LoadedOffer:
    """An offered class or function.

    Attributes:
        name: name that users type.
        load: `module:attribute`; for a local file with the name under which this process imported it.
        origin, version, path: of the plugin, as in `Origin`.
    """

    name: str
    load: str
    origin: str
    version: str
    path: Path | None = None


@dataclass(frozen=True, slots=True)
class LoadedFile:
    """An offered grid file, data folder or file of published numbers.

    Attributes:
        name: grid name, or a label.
        path: the file or folder.
        origin, version: of the plugin, as in `Origin`.
    """

    name: str
    path: Path
    origin: str
    version: str


@dataclass(frozen=True, slots=True)
class BrokenPlugin:
    """A plugin that did not load, or whose hook failed.

    Attributes:
        origin, name, version: of the plugin, as in `Origin`.
        stage: `import`, `register`, `offer`, `api`, `name`, `progress` or `record_finished`.
        message: what is wrong and what to do, one line.
        traceback: the full traceback.
        local: whether it is a local file.
    """

    origin: str
    stage: str
    message: str
    traceback: str
    name: str = ""
    version: str = ""
    local: bool = False

    @classmethod
    def of(cls, source: Origin, stage: str, error: BaseException) -> BrokenPlugin:
        """Describe a plugin's failure."""
        text = "".join(traceback.format_exception(error))
        return cls(source.origin, stage, one_line(error), text, source.name, source.version, source.path is not None)


def one_line(error: BaseException) -> str:
    """Return an error's message on one line, after the name of its type unless it is a `DfqError`."""
    text = " ".join(str(error).split())
    if isinstance(error, DfqError):
        return text
    if isinstance(error, SystemExit):
        return f"it called sys.exit({text}); remove the call, or guard it by `if __name__ == '__main__'`"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
