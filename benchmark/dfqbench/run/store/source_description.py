"""Saved sources, as the host sees them without torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

DESCRIPTION = "source.json"
MOST_BYTES = 2**20


def read_description(folder: Path, environment: str | None) -> dict[str, Any] | None:
    """Describes the source saved in a folder.

    Args:
        folder: of the source's identity.
        environment: identity of the environment that it must come from, or None: any.

    Returns:
        What `save_source` wrote; None where nothing fits, so that the source is made again.
    """
    try:
        if (folder / DESCRIPTION).stat().st_size > MOST_BYTES:
            return None
        found = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        fits = environment is None or found["environment"] == environment
        found["cost"]["seconds"] = float(found["cost"]["seconds"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return found if fits else None


def is_saved(folder: Path, environment: str | None) -> bool:
    """Whether a source of this environment (None: any) is saved in a folder."""
    return read_description(folder, environment) is not None
