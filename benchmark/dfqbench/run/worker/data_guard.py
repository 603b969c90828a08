"""The data guard: record every opening or listing of real data while plugin code runs.

It sees what Python's audit hooks see. Native readers open files without them, so a record can only say "none seen".
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_READS = frozenset({"open", "os.listdir", "os.scandir", "shutil.copyfile", "sqlite3.connect"})
_CHANGES = frozenset({"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "shutil.rmtree", "os.link"})
"""Events that change a folder; opening for writing does too."""
_TWO_PATHS = frozenset({"os.link", "os.rename", "os.symlink", "shutil.copyfile"})
"""Events that name a source and a destination."""
_EVENTS = _READS | _CHANGES | _TWO_PATHS
_WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
MOST_HITS = 20
"""Paths kept; one is enough to make a record invalid."""


class DataGuard:
    """Record access to real data, and changes of the results of other cells, inside `watching`.

    Attributes:
        hits: real data that was accessed, as the plugin named it.
        writes: files in `results` and not in `own` that were changed.

    Args:
        paths: files and folders of real data.
        results: a folder that plugin code must not change, or None.
        own: folders in it that plugin code may change.
    """

    def __init__(self, paths: Iterable[Path], results: Path | None = None, own: Iterable[Path] = ()) -> None:
        self.hits: list[str] = []
        self.writes: list[str] = []
        self._paths = _roots(paths)
        self._results = _roots([] if results is None else [results])
        self._own = _roots(own)
        self._watching = False
        sys.addaudithook(self._hook)

    @contextmanager
    def watching(self, on: bool = True) -> Iterator[None]:
        """Record in the block; with `on=False` do not, while the host writes inside a plugin's call."""
        before, self._watching = self._watching, on
        try:
            yield
        finally:
            self._watching = before

    def _hook(self, event: str, args: tuple[Any, ...]) -> None:
        if not self._watching or event not in _EVENTS or not args:
            return
        changes = event in _CHANGES or (event == "open" and _writes(args))
        with self.watching(on=False):  # resolving a path raises events too
            for path in args[:2] if event in _TWO_PATHS else args[:1]:
                if isinstance(path, str | bytes | os.PathLike):
                    self._check(os.fsdecode(path), changes=changes)

    def _check(self, path: str, *, changes: bool) -> None:
        try:
            forms = _forms(path)
        except (OSError, ValueError):
            return
        if _is_below(forms, self._paths):
            _add(self.hits, path)
        if changes and _is_below(forms, self._results) and not _is_below(forms, self._own):
            _add(self.writes, path)


def _add(paths: list[str], path: str) -> None:
    if path not in paths and len(paths) < MOST_HITS:
        paths.append(path)


def _writes(args: tuple[Any, ...]) -> bool:
    """Whether an `open` event (path, mode, flags) is for writing."""
    mode, flags = (*args, None, None)[1:3]
    if isinstance(mode, str):
        return any(letter in mode for letter in "wax+")
    return isinstance(flags, int) and bool(flags & _WRITE_FLAGS)


def _forms(path: str) -> tuple[str, str]:
    """The path as named and with symbolic links resolved, both absolute."""
    return os.path.abspath(path), os.path.realpath(path)  # noqa: PTH100 - a hook must be light


def _roots(paths: Iterable[Path]) -> frozenset[str]:
    return frozenset(form for path in paths for form in _forms(os.fspath(path)))


def _is_below(forms: tuple[str, str], roots: frozenset[str]) -> bool:
    return any(form == root or form.startswith(root.rstrip(os.sep) + os.sep) for form in forms for root in roots)
