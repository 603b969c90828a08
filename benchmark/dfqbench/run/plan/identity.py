"""Identities: content hashes over canonical JSON, so that a result is found again exactly when nothing changed.

Three hashes are nested: source inside student inside cell; only the last holds the evaluation set. Each covers the
text of the code that it depends on, so that an edited loss never meets a stale result.
"""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

import dfqbench
from dfqbench.plugins import source_hash

LENGTH = 16
"""Hexadecimal digits of an identity: 64 bits."""
CODE = frozenset({".py", ".cpp", ".h"})
"""Endings of files of code."""


def canonical(data: Any) -> str:
    """JSON with sorted keys and no white space.

    Raises:
        ValueError: the data holds NaN or infinity.
    """
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def identity(data: Any) -> str:
    """Short content hash of JSON-able data."""
    return hashlib.sha256(canonical(data).encode()).hexdigest()[:LENGTH]


def derived_seed(key: str, *scope: str | int) -> int:
    """A seed for torch from a key and a scope; 63 bits, the same for the same arguments."""
    text = canonical([key, *scope])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


@cache
def host_code(*rooms: str) -> str:
    """Hash of the text of some of the host's rooms (folders or files below the package)."""
    root = Path(dfqbench.__file__).parent
    files: list[Path] = []
    for room in rooms:
        place = root / room
        files += [place] if place.is_file() else sorted(f for f in place.rglob("*") if f.suffix in CODE)
    return source_hash(files)
