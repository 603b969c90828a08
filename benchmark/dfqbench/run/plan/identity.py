"""Identities: content hashes over canonical JSON.

Three hashes are nested: source inside student inside cell; only the last covers the evaluation set. Each covers the
text of the code that it depends on, so that an edited loss never reuses a stale result.
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
    """Return JSON with sorted keys and no white space.

    Raises:
        ValueError: the data holds NaN or infinity.
    """
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def identity(data: Any) -> str:
    """Return a short content hash of JSON-able data."""
    return hashlib.sha256(canonical(data).encode()).hexdigest()[:LENGTH]


def derived_seed(key: str, *scope: str | int) -> int:
    """Return a seed of 63 bits for torch, the same for the same key and scope."""
    text = canonical([key, *scope])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


@cache
def host_code(*paths: str) -> str:
    """Return a hash of the text of code files, by folders or files below the package."""
    files: list[Path] = []
    for path in (Path(dfqbench.__file__).parent / name for name in paths):
        files += [path] if path.is_file() else sorted(f for f in path.rglob("*") if f.suffix in CODE)
    return source_hash(files)
