"""Data folders without a manifest: layouts that are recognised by the names in them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from dfqbench.targets.spec import DatasetSpec
from dfqbench.targets.wnids import class_folders, wnids

EXPECTED = (
    "a targets.toml, val/<wnid>/*.JPEG or imagenet/val/<wnid>/*.JPEG, cifar10/test.npz, cifar100/test.npz, "
    "cifar-10-batches-py or cifar-100-python"
)
"""What a data folder may hold, for messages."""


def recognised(folder: Path) -> dict[str, DatasetSpec]:
    """Evaluation sets of a folder by name.

    Args:
        folder: an existing folder; the class folders may also lie in it directly.

    Raises:
        InputError: a class folder of an ImageNet layout is none of the 1,000 classes.
    """
    found: dict[str, DatasetSpec] = {}
    for finder in _FINDERS:
        dataset = finder(folder)
        if dataset is not None:
            found.setdefault(dataset.name, dataset)
    return found


def _imagenet(folder: Path) -> DatasetSpec | None:
    for val in (folder / "imagenet" / "val", folder / "val", folder):
        count = len(class_folders(val))
        if not count:
            continue
        total = len(wnids())
        name, parent = ("imagenet", None) if count == total else (f"imagenet-subset-{count}", "imagenet")
        train = val.parent / "train"
        has_train = val != folder and bool(class_folders(train))
        return DatasetSpec(name, "imagenet-folder", val, train if has_train else None, total, subset_of=parent)
    return None


def _npz(name: str, classes: int) -> Callable[[Path], DatasetSpec | None]:
    def find(folder: Path) -> DatasetSpec | None:
        test = folder / name / "test.npz"
        train = folder / name / "train.npz"
        if not test.is_file():
            return None
        return DatasetSpec(name, "npz", test, train if train.is_file() else None, classes)

    return find


def _torchvision(name: str, base: str, file: str, classes: int) -> Callable[[Path], DatasetSpec | None]:
    def find(folder: Path) -> DatasetSpec | None:
        for inner in (folder / base, folder / name / base):
            if (inner / file).is_file():
                return DatasetSpec(name, "torchvision", inner, inner, classes)
        return None

    return find


_FINDERS: tuple[Callable[[Path], DatasetSpec | None], ...] = (
    _imagenet,
    _npz("cifar10", 10),
    _npz("cifar100", 100),
    _torchvision("cifar10", "cifar-10-batches-py", "test_batch", 10),
    _torchvision("cifar100", "cifar-100-python", "test", 100),
)
