"""The identity of an evaluation set: SHA-256."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from dfqbench.api.errors import InputError, Unavailable
from dfqbench.models.identity import file_sha256
from dfqbench.targets.spec import DatasetSpec, digits_file

_SPLIT_VERSION = b"digits split 1: every 540/1797-th image in order of class"


def fingerprint(dataset: DatasetSpec) -> str:
    """SHA-256 that changes when the evaluation images or their labels do.

    Files are hashed by content. A folder of images is hashed by the sorted relative paths and sizes of its files, since
    reading 50,000 images for a hash would take minutes.

    Raises:
        InputError: the data cannot be read.
        Unavailable: scikit-learn, which holds the digits, is not installed.
    """
    if dataset.kind == "digits":
        path = digits_file()
        if path is None or not path.is_file():
            raise Unavailable("the digits of scikit-learn were not found", "pip install scikit-learn")
        return hashlib.sha256(_SPLIT_VERSION + file_sha256(path).encode()).hexdigest()
    if dataset.evaluate is None:
        raise InputError(f"target '{dataset.name}' has no evaluation set", "name its file or folder in targets.toml")
    if dataset.kind == "npz":
        return file_sha256(dataset.evaluate)
    if dataset.kind == "torchvision":
        file = dataset.evaluate / ("test_batch" if dataset.classes == 10 else "test")
        return file_sha256(file)
    return _folder_sha256(dataset.evaluate)


def _folder_sha256(folder: Path) -> str:
    lines: list[str] = []
    for parent, _, names in os.walk(folder, onerror=_raise):
        for name in names:
            path = Path(parent, name)
            lines.append(f"{path.relative_to(folder).as_posix()}\t{path.stat().st_size}\n")
    digest = hashlib.sha256()
    for line in sorted(lines):
        digest.update(line.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _raise(error: OSError) -> None:
    raise InputError(f"cannot read {error.filename}: {error.strerror}", "check the path and its permissions") from error
