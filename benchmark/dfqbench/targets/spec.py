"""Targets as plain data: an evaluation set and the networks that have weights for it."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dfqbench.models.spec import ModelSpec, card_as_dict

__all__ = ["DatasetSpec", "Kind", "MissingModel", "ModelSpec", "Target", "card_as_dict", "digits_file", "guarded_paths"]

Kind = Literal["npz", "imagenet-folder", "torchvision", "digits"]


@dataclass(frozen=True, slots=True)
class DatasetSpec:
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

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON data; `from_dict` reads it back."""
        return {
            "name": self.name,
            "kind": self.kind,
            "evaluate": None if self.evaluate is None else str(self.evaluate),
            "train": None if self.train is None else str(self.train),
            "classes": self.classes,
            "subset_of": self.subset_of,
            "resize": self.resize,
            "crop": self.crop,
            "default_budget": self.default_budget,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> DatasetSpec:
        """Reads what `as_dict` wrote."""
        return cls(**{**data, "evaluate": _path(data["evaluate"]), "train": _path(data["train"])})


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
        dataset: the evaluation set, or None where it was not found.
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
    """Where scikit-learn keeps its digits, found without importing it; None without scikit-learn."""
    found = importlib.util.find_spec("sklearn")
    if found is None or not found.submodule_search_locations:
        return None
    return Path(found.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"


def guarded_paths(dataset: DatasetSpec) -> tuple[Path, ...]:
    """Files and folders that plugin code must not open, as written and with symbolic links resolved."""
    paths = [dataset.evaluate, dataset.train]
    if dataset.kind == "digits":
        paths.append(digits_file())
    both = [form for path in paths if path is not None for form in (path.absolute(), path.resolve())]
    return tuple(dict.fromkeys(both))


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)
