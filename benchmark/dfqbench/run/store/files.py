"""Names of files in a run's folder, reading regular files, and writing files whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

RECORD = "record.json"
DIGEST = "record.sha256"
"""Digests of what was written as the record beside it, a line each, as `sha256sum` prints them."""
STUDENT_FILES = ("student.safetensors", "student.json")
IMAGES_FILE = "images.safetensors"
REAL_IMAGES_FILE = "real-images.safetensors"
"""Which images of the training split the `real` control has used; no pixels."""
TRAINING = "training"
TRACEBACK_FILE = "traceback.txt"
_OF_HOST = (RECORD, DIGEST, TRACEBACK_FILE)
"""Files of an attempt that only the host writes, after its worker has ended."""


@contextlib.contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Yield a temporary name; at the end of the block, flush what was written there to disk and rename it to `path`.

    Nothing but a rename ever changes `path`, so that it is whole on any file system.
    """
    # A random name: processes of several machines may write the same file of a shared folder.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        yield temporary
        with temporary.open("rb+") as stream:
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def read_regular(path: str | Path, most: int) -> bytes:
    """Read a file of at most `most` bytes.

    Raises:
        OSError: it cannot be read, is larger, or is no regular file (a pipe would block for ever).
    """
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb", buffering=0) as stream:
        facts = os.fstat(stream.fileno())
        if not stat.S_ISREG(facts.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        if facts.st_size > most:
            raise OSError(errno.EFBIG, f"larger than {most} bytes", str(path))
        return stream.readall()


def shorten_file(path: Path, most: int) -> None:
    """Keep the head and the tail of a regular file that is larger than `most` bytes, where that is possible."""
    with contextlib.suppress(OSError):
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW), "rb") as stream:
            facts = os.fstat(stream.fileno())
            if not stat.S_ISREG(facts.st_mode) or facts.st_size <= most:
                return
            head = stream.read(most // 2)
            stream.seek(facts.st_size - most // 2)
            tail = stream.read(most // 2)
        with replaced(path) as temporary:
            left_out = facts.st_size - len(head) - len(tail)
            temporary.write_bytes(head + f"\n... {left_out:,} bytes are left out ...\n".encode() + tail)


def reclaim(attempt: Path, *, written: bool = False) -> str:
    """Make an attempt's folder usable again, if plugin code has damaged it.

    Args:
        attempt: the folder, which was there.
        written: whether the host has begun to write its record.

    Returns:
        What plugin code did, or an empty string.

    Raises:
        OSError: the folder cannot be made.
    """
    damage = ""
    for folder in (attempt.parent, attempt):
        if folder.is_symlink() or not folder.is_dir():
            damage = "removed or replaced the attempt's folder"
            folder.unlink(missing_ok=True)
            folder.mkdir(parents=True)
        elif folder.stat().st_mode & stat.S_IRWXU != stat.S_IRWXU:
            damage = "took the rights to the attempt's folder away"
            folder.chmod(0o755)
    for path in (attempt / name for name in _OF_HOST):
        if not (written and path.is_file() and not path.is_symlink()) and set_aside(path):
            damage = damage or f"wrote {path.name}"
    return damage


def set_aside(path: Path) -> bool:
    """Rename what is at a path, of any kind; return whether something was there."""
    with contextlib.suppress(FileNotFoundError):
        path.rename(path.with_name(f"{path.name}.{secrets.token_hex(4)}.aside"))
        return True
    return False


def write_json(path: Path, data: Any) -> None:
    """Write JSON, whole or not at all."""
    write_text(path, json_text(data))


def json_text(data: Any) -> str:
    """Return the JSON that `write_json` writes; it is ASCII."""
    return json.dumps(data, indent=1, allow_nan=False) + "\n"


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all; what UTF-8 cannot encode is written as an escape."""
    with replaced(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def _sync_folder(folder: Path) -> None:
    """Flush a folder's list of names to disk, so that a rename survives a power cut; some file systems cannot."""
    with contextlib.suppress(OSError):
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


MESSAGE = 1_000
"""Most characters of a message."""
TRACEBACK = 20_000
"""Most characters of a traceback."""


def shortened(text: str, most: int = MESSAGE) -> str:
    """Return valid text, of a longer one the head and the tail, together `most` characters."""
    if len(text) > most:
        text = f"{text[: most // 2]} [... {len(text) - most:,} characters are left out ...] {text[-(most // 2) :]}"
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def valid(data: Any) -> Any:
    """Return JSON data with its lone surrogates, which UTF-8 cannot encode, written as escapes."""
    if type(data) is str:
        return shortened(data, len(data))
    if isinstance(data, dict):
        return {valid(key): valid(value) for key, value in data.items()}
    return [valid(value) for value in data] if isinstance(data, list) else data
