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
TWO_PATHS = frozenset({"os.link", "os.rename", "os.symlink", "shutil.copyfile"})
"""Events that name a source and a destination."""
MOST_HITS = 20
"""Paths kept; one suffices to spoil a record."""


CHANGES = frozenset({"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "shutil.rmtree", "os.link"})
"""Events that change a folder; opening for writing does too."""
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class DataGuard:
    """Watches real data, and the results of other cells.

    The hook stays for the life of the process; only `watching` makes it count.

    Attributes:
        hits: real data that was touched while watching, as given.
        writes: files among the results that were changed while watching, outside the attempt's own folder.

    Args:
        paths: files and folders of real data.
        results: a folder that plugin code must not change, or None.
        own: the parts of it that are the plugin's own.
    """

    def __init__(self, paths: Iterable[Path], results: Path | None = None, own: Iterable[Path] = ()) -> None:
        self.hits: list[str] = []
        self.writes: list[str] = []
        self._results = () if results is None else tuple(dict.fromkeys(_forms(os.fspath(results))))
        self._own = tuple(dict.fromkeys(form for path in own for form in _forms(os.fspath(path))))
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
        if not self._watching or (event not in EVENTS and event not in CHANGES) or not args:
            return
        named = args[:2] if event in TWO_PATHS else args[:1]
        self._watching = False  # resolving a path must not be heard
        try:
            for path in named:
                if isinstance(path, str | bytes | os.PathLike):
                    self._look(os.fsdecode(path), changes=event in CHANGES or (event == "open" and _writes(args)))
        finally:
            self._watching = True

    def _look(self, path: str, *, changes: bool) -> None:
        try:
            forms = _forms(path)
        except (OSError, ValueError):
            return
        if any(_is_below(form, root) for form in forms for root in self._paths):
            _add(self.hits, path)
        if not changes or not any(_is_below(form, root) for form in forms for root in self._results):
            return
        if not any(_is_below(form, root) for form in forms for root in self._own):
            _add(self.writes, path)


def _add(found: list[str], path: str) -> None:
    if path not in found and len(found) < MOST_HITS:
        found.append(path)


def _writes(args: tuple[Any, ...]) -> bool:
    """Whether an `open` event (path, mode, flags) is for writing."""
    mode, flags = (*args, None, None)[1:3]
    if isinstance(mode, str):
        return any(letter in mode for letter in "wax+")
    return isinstance(flags, int) and bool(flags & _WRITING)


def _forms(path: str) -> tuple[str, str]:
    return os.path.abspath(path), os.path.realpath(path)  # noqa: PTH100 - a hook must be light


def _is_below(path: str, root: str) -> bool:
    return path == root or path.startswith(root.rstrip(os.sep) + os.sep)
