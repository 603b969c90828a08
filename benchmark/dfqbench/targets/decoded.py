"""Decoded images of a folder of image files, kept as one memory-mapped file: later evaluations decode nothing.

Written only by an explicit `dfqbench decode`, which says the size first. The file's name holds the content, the crop
and the text of the decoding code, so that a changed folder or a new version never meets a stale file.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dfqbench.api.card import ModelCard
from dfqbench.api.errors import InputError, UsageError
from dfqbench.targets.fingerprint import fingerprint
from dfqbench.targets.folders import DECODED, decoded_folder
from dfqbench.targets.pixels import Array, ArrayPixels, FolderPixels, Pixels, open_split
from dfqbench.targets.spec import DatasetSpec

_WRITTEN_AT_A_TIME = 64


@dataclass(frozen=True, slots=True)
class Decoded:
    """The decoded form of an evaluation set at one crop.

    Attributes:
        path: the file, there or not.
        pixels: the image files.
    """

    path: Path
    pixels: FolderPixels

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, H, W, C)."""
        return (len(self.pixels.labels), *self.pixels.shape)

    @property
    def bytes(self) -> int:
        """Size of the pixels."""
        count, height, width, channels = self.shape
        return count * height * width * channels

    def open(self) -> ArrayPixels | None:
        """The pixels from the file, or None where there is no such file, or another one under its name."""
        try:
            images: Array = np.load(self.path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None
        if images.dtype != np.uint8 or images.shape != self.shape:
            return None
        return ArrayPixels(images, self.pixels.labels, self.pixels.scale)

    def write(self) -> None:
        """Decodes every image; the file appears under its name only when it is complete.

        Raises:
            InputError: an image cannot be decoded.
            UsageError: the disk is too small.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.path.parent).free
        if free < self.bytes * 1.02:
            raise UsageError(
                f"{self.path.parent} has {free / 2**30:.1f} GiB left, {self.bytes / 2**30:.1f} GiB are needed",
                f"make room, or name another folder with {DECODED}",
            )
        temporary = self.path.with_name(f"{self.path.name}.{os.getpid()}.part")
        try:
            images = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=self.shape)
            start = 0
            for part in self.pixels.stream(range(self.shape[0]), _WRITTEN_AT_A_TIME):
                images[start : start + len(part)] = part
                start += len(part)
            images.flush()
            del images
            temporary.replace(self.path)
        finally:
            temporary.unlink(missing_ok=True)


def decoded(dataset: DatasetSpec, card: ModelCard) -> Decoded | None:
    """The decoded form of a target's evaluation set for a network; None where its images lie decoded already.

    Raises:
        InputError: the data cannot be read or does not fit the card.
        Unavailable: there is no evaluation set.
    """
    return _of(dataset, open_split(dataset, "evaluate", card))


def open_evaluation(dataset: DatasetSpec, card: ModelCard) -> Pixels:
    """The evaluation images of a target, from the decoded file where there is one.

    Raises:
        InputError: the data cannot be read or does not fit the card.
        Unavailable: there is no evaluation set.
    """
    pixels = open_split(dataset, "evaluate", card)
    found = _of(dataset, pixels)
    return pixels if found is None else found.open() or pixels


def _of(dataset: DatasetSpec, pixels: Pixels) -> Decoded | None:
    if not isinstance(pixels, FolderPixels):
        return None
    code = hashlib.sha256(Path(__file__).with_name("pixels.py").read_bytes()).hexdigest()
    facts = "\n".join([fingerprint(dataset), repr(pixels.shape), str(pixels.resize), code])
    name = f"{dataset.name}-{hashlib.sha256(facts.encode()).hexdigest()[:16]}.npy"
    return Decoded(decoded_folder() / name, pixels)


def checked(dataset: DatasetSpec, found: Decoded | None) -> Decoded:
    """The decoded form, or an error where there is nothing to decode.

    Raises:
        InputError: the images are no image files.
    """
    if found is None:
        raise InputError(
            f"the images of target '{dataset.name}' are stored as pixels", "nothing needs to be done: run the grid"
        )
    return found
