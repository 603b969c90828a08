"""The data guard: notes every opening or listing of real data while plugin code runs.

It hears what Python's audit hooks hear. Native readers that open files behind Python's back are not seen, so a record
can only say "none seen".
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

EVENTS = frozenset(
    {"open", "os.listdir", "os.scandir", "os.link", "os.rename", "os.symlink", "shutil.copyfile", "sqlite3.connect"}
)
MOST_HITS = 20
"""Paths kept; one suffices to spoil a record."""


class DataGuard:
    """Watches some files and folders. The hook stays for the life of the process; only `watching` makes it count.

    Attributes:
        hits: paths that were touched while watching, as given.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self.hits: list[str] = []
        self._watching = False
        self._paths = tuple(dict.fromkeys(form for path in paths for form in _forms(os.fspath(path))))
        sys.addaudithook(self._hook)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Within it, touching the watched paths is noted."""
        before = self._watching
        self._watching = True
        try:
            yield
        finally:
            self._watching = before

    @contextmanager
    def off(self) -> Iterator[None]:
        """Within it nothing is noted: the host's own writing amid a plugin's call."""
        before = self._watching
        self._watching = False
        try:
            yield
        finally:
            self._watching = before

    def _hook(self, event: str, args: tuple[Any, ...]) -> None:
        if not self._watching or event not in EVENTS or not args or len(self.hits) >= MOST_HITS:
            return
        path = args[0]
        if not isinstance(path, str | bytes | os.PathLike):
            return
        path = os.fsdecode(path)
        self._watching = False  # resolving a path must not be heard
        try:
            touched = any(_is_below(form, root) for form in _forms(path) for root in self._paths)
        except (OSError, ValueError):
            touched = False
        finally:
            self._watching = True
        if touched and path not in self.hits:
            self.hits.append(path)


def _forms(path: str) -> tuple[str, str]:
    return os.path.abspath(path), os.path.realpath(path)  # noqa: PTH100 - a hook must be light


def _is_below(path: str, root: str) -> bool:
    return path == root or path.startswith(root.rstrip(os.sep) + os.sep)
