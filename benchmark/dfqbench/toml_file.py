"""Read TOML files of unknown origin: grids and manifests."""

from __future__ import annotations

import stat
import tomllib
from pathlib import Path
from typing import Any

from dfqbench.api.errors import InputError

MAX_BYTES = 2**22
"""A larger file is neither a grid nor a manifest."""


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        InputError: it cannot be read, is no regular file, not TOML, not UTF-8, too large, or nested too deeply.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
            raise InputError(f"{path} is not a regular file", "name a file")
        if status.st_size > MAX_BYTES:
            raise InputError(f"{path} is larger than {MAX_BYTES >> 20} MiB", "name another file")
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise InputError(f"{path} cannot be read: {reason}", "check the path and permissions") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text", "save it as UTF-8") from error
    except (ValueError, RecursionError) as error:
        reason = "its values are nested too deeply" if isinstance(error, RecursionError) else str(error)
        reason = reason[:1].lower() + reason[1:]
        raise InputError(f"{path} is not valid TOML: {reason}", "correct the file at that place") from error
