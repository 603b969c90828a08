"""What plugins brought along, with where it came from; and what is known of a plugin that did not load."""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from pathlib import Path

from dfqbench.api.errors import DfqError


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a plugin came from.

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
    """A method, quantizer or model family that can be imported.

    Attributes:
        name: name that users type.
        load: `module:attribute`; for a local file with the name under which this process imported it.
        origin: the distribution's name, or the path of the local file.
        version: the distribution's version; empty for a local file.
        path: the local file, or None for an installed plugin.
    """

    name: str
    load: str
    origin: str
    version: str
    path: Path | None = None


@dataclass(frozen=True, slots=True)
class LoadedFile:
    """A grid file or a data folder that a plugin brought along.

    Attributes:
        name: grid name, or the label of the data folder.
        path: the file or folder.
        origin: the distribution's name, or the path of the local plugin file.
        version: the distribution's version; empty for a local file.
    """

    name: str
    path: Path
    origin: str
    version: str


@dataclass(frozen=True, slots=True)
class BrokenPlugin:
    """A plugin that did not load, or a hook of it that failed.

    Attributes:
        origin: the distribution's name, or the path of the local file.
        stage: `import`, `register`, `offer`, `api`, `name` or `record_finished`.
        message: what is wrong and what to do, one line.
        traceback: the full traceback.
        name: the entry point's name; for a local file, its stem.
        version: the distribution's version; empty for a local file.
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
        """Describes a failure."""
        text = "".join(traceback.format_exception(error))
        return cls(source.origin, stage, one_line(error), text, source.name, source.version, source.path is not None)


def one_line(error: BaseException) -> str:
    """The message of an error on one line; the type's name comes first where the error is not one of ours."""
    text = " ".join(str(error).split())
    if isinstance(error, DfqError):
        return text
    if isinstance(error, SystemExit):
        return f"it called sys.exit({text}); remove the call, or guard it by `if __name__ == '__main__'`"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
