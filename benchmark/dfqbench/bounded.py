"""TOML files from strangers, read within bounds."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

MOST_BYTES = 2**22
"""A larger file is neither a grid nor a manifest."""


def read_toml(path: Path) -> dict[str, Any]:
    """Reads a TOML file.

    Raises:
        ValueError: it is not TOML, not UTF-8, too large, or nested without end.
        OSError: it cannot be read.
    """
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"the file is larger than {MOST_BYTES >> 20} MiB")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("its values are nested too deeply") from None
