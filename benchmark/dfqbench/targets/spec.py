"""Targets as plain data: an evaluation set and the networks that have weights for it."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dfqbench.api.card import InputStats
from dfqbench.api.errors import InputError, Unavailable
from dfqbench.models.identity import file_sha256
from dfqbench.models.spec import JsonData, ModelSpec

Kind = Literal["npz", "imagenet-folder", "torchvision", "digits"]

_SPLIT_VERSION = b"digits split 1: every 540/1797-th image in order of class"


@dataclass(frozen=True, slots=True)
class DatasetSpec(JsonData):
    """An evaluation set, and the training split of the `real` control where there is one.

    Attributes:
        name: name of the target.
        kind: how it is stored: `npz` (arrays `x`, `y`), `imagenet-folder` (`<wnid>/*.JPEG`), `torchvision`
            (`cifar-10-batches-py` or `cifar-100-python`) or `digits` (inside scikit-learn).
        evaluate: file or folder of the evaluation images; None for `digits`.
        train: file or folder of training images, or None.
        classes: number of classes, present or not.
        subset_of: name of the data set that this is a part of, or None.
        resize: shorter side in pixels before the centre crop, 0: no resize, None: crop / 0.875.
        crop: side of the centre crop in pixels, or None: the model's input size.
        default_budget: budget that presets use here.
        stats: mean and deviation of the domain's images, of pixels in [0, 1]; None: see `Catalogue.domain`.
    """

    name: str
    kind: Kind
    evaluate: Path | None
    train: Path | None
    classes: int
    subset_of: str | None = None
    resize: int | None = None
    crop: int | None = None
    default_budget: str = "paper"
    stats: InputStats | None = None


@dataclass(frozen=True, slots=True)
class MissingModel:
    """A network that was named but cannot be built here.

    Attributes:
        name: name in tables and selectors.
        reason: what is missing and how to get it, one line.
    """

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Target:
    """A data set with the networks that have weights for it.

    Attributes:
        name: name that users type.
        dataset: the evaluation set, or None where there is none.
        models: networks with weights.
        missing: why there is no evaluation set, or empty.
        unavailable: networks that were declared but cannot be built.
    """

    name: str
    dataset: DatasetSpec | None
    models: tuple[ModelSpec, ...]
    missing: str = ""
    unavailable: tuple[MissingModel, ...] = ()


def digits_file() -> Path | None:
    """Return the file of scikit-learn's digits without importing scikit-learn; None if it is not installed."""
    package = importlib.util.find_spec("sklearn")
    if package is None or not package.submodule_search_locations:
        return None
    return Path(package.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"


def guarded_paths(dataset: DatasetSpec) -> tuple[Path, ...]:
    """Return the files and folders that plugin code must not open, as written and with symbolic links resolved."""
    digits = digits_file() if dataset.kind == "digits" else None
    # scikit-learn opens other files of the same folder first.
    paths = [dataset.evaluate, dataset.train, None if digits is None else digits.parent]
    if dataset.kind == "imagenet-folder":
        # Folders of classes may be links.
        folders = [path for path in paths if path is not None and path.is_dir()]
        paths += [entry for folder in folders for entry in folder.iterdir() if entry.is_symlink()]
    return tuple(dict.fromkeys(form for path in paths if path for form in (path.absolute(), path.resolve())))


def fingerprint(dataset: DatasetSpec) -> str:
    """Return a SHA-256 that changes when the evaluation images or their labels do.

    Files are hashed by content. A folder of images is hashed by the sorted relative paths and sizes of its files, since
    reading 50,000 images for a hash would take minutes.

    Raises:
        InputError: the data cannot be read.
        Unavailable: scikit-learn, which holds the digits, is not installed.
    """
    path = digits_file() if dataset.kind == "digits" else dataset.evaluate
    if dataset.kind == "digits":
        if path is None or not path.is_file():
            raise Unavailable("the digits of scikit-learn were not found", "pip install scikit-learn")
        return hashlib.sha256(_SPLIT_VERSION + file_sha256(path).encode()).hexdigest()
    if path is None:
        raise InputError(f"target '{dataset.name}' has no evaluation set", "name its file or folder in targets.toml")
    if dataset.kind == "imagenet-folder":
        return _folder_sha256(path)
    if dataset.kind == "torchvision":
        path /= "test_batch" if dataset.classes == 10 else "test"
    return file_sha256(path)


def _folder_sha256(folder: Path) -> str:
    lines: list[str] = []
    walked: dict[str, str] = {}
    for parent, _, names in os.walk(folder, onerror=_raise, followlinks=True):
        if (first := walked.setdefault(os.path.realpath(parent), parent)) != parent:
            raise InputError(f"{parent} is the same folder as {first}", "take the link out")
        for name in names:
            path = Path(parent, name)
            try:
                status = path.stat()
            except OSError as error:
                place = f"{path}, a link to {os.path.realpath(path)}" if path.is_symlink() else path
                raise InputError(f"cannot read {place}: {error.strerror}", "repair it, or take it out") from error
            if not stat.S_ISREG(status.st_mode):
                raise InputError(f"{path} is not a regular file", "take it out")
            lines.append(f"{path.relative_to(folder).as_posix()}\t{status.st_size}\n")
    return hashlib.sha256("".join(sorted(lines)).encode("utf-8", "surrogateescape")).hexdigest()


def _raise(error: OSError) -> None:
    raise InputError(f"cannot read {error.filename}: {error.strerror}", "check the path and its permissions") from error
