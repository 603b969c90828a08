"""Data folders without a manifest: layouts that are recognised by the names in them; and the classes of ImageNet."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from dfqbench.api.errors import InputError
from dfqbench.targets.spec import DatasetSpec

EXPECTED = (
    "a targets.toml, val/<wnid>/*.JPEG or imagenet/val/<wnid>/*.JPEG, cifar10/test.npz, cifar100/test.npz, "
    "cifar-10-batches-py or cifar-100-python"
)
"""What a data folder may hold, for messages."""
_CIFAR = (("cifar10", 10, "cifar-10-batches-py", "test_batch"), ("cifar100", 100, "cifar-100-python", "test"))
"""Name, classes, and torchvision's folder and test file."""


def recognised(folder: Path) -> dict[str, DatasetSpec]:
    """Return the evaluation sets of a folder by name.

    Args:
        folder: an existing folder; the class folders may also lie in it directly.

    Raises:
        InputError: a class folder of an ImageNet layout is none of the 1,000 classes, or a link that leads nowhere.
    """
    datasets: list[DatasetSpec] = []
    for val in (folder / "imagenet" / "val", folder / "val", folder):
        if present := len(class_folders(val)):
            whole = present == len(wnids())
            train = val.parent / "train" if val != folder and class_folders(val.parent / "train") else None
            name, parent = ("imagenet", None) if whole else (f"imagenet-subset-{present}", "imagenet")
            datasets.append(DatasetSpec(name, "imagenet-folder", val, train, len(wnids()), subset_of=parent))
            break
    for name, classes, base, file in _CIFAR:
        test, train = folder / name / "test.npz", folder / name / "train.npz"
        layouts = [inner for inner in (folder / base, folder / name / base) if (inner / file).is_file()]
        if test.is_file():
            datasets.append(DatasetSpec(name, "npz", test, train if train.is_file() else None, classes))
        elif layouts:
            datasets.append(DatasetSpec(name, "torchvision", layouts[0], layouts[0], classes))
    return {dataset.name: dataset for dataset in datasets}


@cache
def wnids() -> tuple[str, ...]:
    """Return the sorted WordNet ids of the 1,000 ImageNet classes; the position of an id is its class."""
    return tuple(Path(__file__).with_name("wnids.txt").read_text(encoding="ascii").split())


def class_folders(folder: Path) -> dict[str, int]:
    """Map class folders of an ImageNet-style folder to their class indices.

    Args:
        folder: folder with one sub-folder a class, named by WordNet id.

    Returns:
        Class index by folder name, in order of class; empty if no sub-folder looks like a WordNet id.

    Raises:
        InputError: a sub-folder has the form of a WordNet id but is none of the 1,000, or is a link that leads nowhere.
    """
    if not folder.is_dir():
        return {}
    paths = [path for path in folder.iterdir() if re.fullmatch(r"n\d{8}", path.name)]
    for path in paths:
        if path.is_symlink() and not path.exists():
            raise InputError(f"{path} is a link to {path.readlink()}, which is not there", "repair it, or take it out")
    names = sorted(path.name for path in paths if path.is_dir())
    index = {wnid: number for number, wnid in enumerate(wnids())}
    unknown = [name for name in names if name not in index]
    if unknown:
        more = f"(and {len(unknown) - 1} more) " if len(unknown) > 1 else ""
        raise InputError(
            f"{folder}: {unknown[0]} {more}is none of the 1,000 classes of ImageNet-1k",
            "rename the folder to the WordNet id of its class in ILSVRC2012, or take it out",
        )
    return {name: index[name] for name in names}
