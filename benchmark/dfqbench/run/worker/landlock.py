"""Confine a process's access to files with Landlock, where the Linux kernel offers it.

Source: the kernel's documentation (userspace-api/landlock). All architectures number these system calls alike.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable, Set
from functools import cache
from pathlib import Path

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION_FLAG, _PATH_BENEATH, _NO_NEW_PRIVILEGES = 1, 1, 38
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR, _TRUNCATE = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 14
_RIGHTS_OF_VERSION = (0, (1 << 13) - 1, (1 << 14) - 1, (1 << 15) - 1)
"""File rights that each version of the interface knows; those of devices (version 5) stay free: GPUs need them."""
_READ = _EXECUTE | _READ_FILE | _READ_DIR
_FILE = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (("allowed_access", ctypes.c_uint64), ("parent_fd", ctypes.c_int32))


def landlock_version() -> int:
    """Return the version of the kernel's Landlock interface; 0 where there is none."""
    try:
        return max(0, int(_syscall(_CREATE_RULESET, None, 0, _VERSION_FLAG)))
    except (OSError, AttributeError):
        return 0


def restrict(readable: Iterable[Path], writable: Iterable[Path], listable: Iterable[Path] = ()) -> None:
    """Let this thread, and the threads and processes that it starts from now on, use the named files only.

    It cannot be undone. Files that are open already stay usable.

    Args:
        readable: files and folders that may be read and executed.
        writable: files and folders that may be read and changed.
        listable: folders whose entries may be listed.

    Raises:
        OSError: the kernel has no Landlock or refuses the rules.
    """
    rights = _RIGHTS_OF_VERSION[min(landlock_version(), len(_RIGHTS_OF_VERSION) - 1)]
    handled = ctypes.c_uint64(rights)
    ruleset = _syscall(_CREATE_RULESET, ctypes.byref(handled), ctypes.sizeof(handled), 0)
    try:
        for paths, access in ((readable, _READ), (writable, rights), (listable, _READ_DIR)):
            for path in paths:
                _allow(ruleset, path, access & rights)
        _syscall_of("prctl", _NO_NEW_PRIVILEGES, 1, 0, 0, 0)
        _syscall(_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)


def without(folders: Iterable[Path], excluded: Set[Path]) -> tuple[list[Path], list[Path]]:
    """Split folders so that what is excluded is in none of the parts.

    Args:
        folders: files and folders; those that do not exist are left out.
        excluded: files and folders, resolved.

    Returns:
        Parts that hold nothing excluded, and the folders that were split.
    """
    above = {folder for place in excluded for folder in place.parents}
    seen: set[Path] = set()
    parts: list[Path] = []
    split: list[Path] = []
    waiting = [*folders]
    while waiting:
        path = waiting.pop().resolve()
        if path in seen or path in excluded or not excluded.isdisjoint(path.parents) or not path.exists():
            continue
        seen.add(path)
        if path in above:
            split.append(path)
            waiting += path.iterdir()
        else:
            parts.append(path)
    return parts, split


def _allow(ruleset: int, path: Path, access: int) -> None:
    try:
        parent = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        allowed = access if path.is_dir() else access & _FILE
        rule = _PathBeneath(allowed, parent)
        _syscall(_ADD_RULE, ruleset, _PATH_BENEATH, ctypes.byref(rule), 0)
    finally:
        os.close(parent)


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _syscall(*arguments: object) -> int:
    return _syscall_of("syscall", *arguments)


def _syscall_of(function: str, *arguments: object) -> int:
    result = int(getattr(_libc(), function)(*arguments))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
