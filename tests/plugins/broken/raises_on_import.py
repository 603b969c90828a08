"""Fails while it is imported."""

from __future__ import annotations

import dfqbench_no_such_library  # noqa: F401
