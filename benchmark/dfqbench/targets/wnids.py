"""The 1,000 ImageNet classes: sorted WordNet ids, whose position is the class index."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from dfqbench.api.errors import InputError

WNID = re.compile(r"n\d{8}")


@cache
def wnids() -> tuple[str, ...]:
    """The sorted ids; the index of an id in this tuple is its class."""
    return tuple(Path(__file__).with_name("wnids.txt").read_text(encoding="ascii").split())


def class_folders(folder: Path) -> dict[str, int]:
    """Class folders of an ImageNet-style folder with their class indices.

    Args:
        folder: folder with one sub-folder a class, named by WordNet id.

    Returns:
        Class index by folder name, in order of class; empty if no sub-folder looks like a WordNet id.

    Raises:
        InputError: a sub-folder has the form of a WordNet id but is none of the 1,000.
    """
    if not folder.is_dir():
        return {}
    names = sorted(entry.name for entry in folder.iterdir() if WNID.fullmatch(entry.name) and entry.is_dir())
    index = {name: number for number, name in enumerate(wnids())}
    unknown = [name for name in names if name not in index]
    if unknown:
        more = f"(and {len(unknown) - 1} more) " if len(unknown) > 1 else ""
        raise InputError(
            f"{folder}: {unknown[0]} {more}is none of the 1,000 classes of ImageNet-1k",
            "rename the folder to the WordNet id of its class in ILSVRC2012, or take it out",
        )
    return {name: index[name] for name in names}
