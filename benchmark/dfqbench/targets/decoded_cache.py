"""Decoded images of a folder of image files, kept as one memory-mapped file: later evaluations decode nothing.

Written only by an explicit `dfqbench decode`, which prints the size first. The file's name holds a hash of the content,
the crop and the text of the decoding code, so that a changed folder or a new version never uses a stale file.
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
from dfqbench.targets.folders import DECODED, decoded_folder
from dfqbench.targets.pixels import Array, ArrayPixels, FolderPixels, Pixels, open_split
from dfqbench.targets.spec import DatasetSpec, fingerprint

_BATCH = 64


@dataclass(frozen=True, slots=True)
class DecodedCache:
    """The file of an evaluation set's decoded images at one crop.

    Attributes:
        path: the file, which may not exist.
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
        """Return the pixels of the file; None if it does not exist or holds something else."""
        try:
            images: Array = np.load(self.path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None
        if images.dtype != np.uint8 or images.shape != self.shape:
            return None
        return ArrayPixels(images, self.pixels.labels, self.pixels.scale)

    def write(self) -> None:
        """Decode every image; the file is renamed to its name when it is complete.

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
            for batch in self.pixels.stream(range(self.shape[0]), _BATCH):
                images[start : start + len(batch)] = batch
                start += len(batch)
            images.flush()
            del images
            temporary.replace(self.path)
        finally:
            temporary.unlink(missing_ok=True)


def decoded_cache(dataset: DatasetSpec, card: ModelCard) -> DecodedCache:
    """Return the file of decoded images for a target's evaluation set and a network.

    Raises:
        InputError: the data cannot be read, does not fit the card, or is no folder of image files.
        Unavailable: there is no evaluation set.
    """
    pixels = open_split(dataset, "evaluate", card)
    if not isinstance(pixels, FolderPixels):
        raise InputError(
            f"the images of target '{dataset.name}' are stored as pixels", "nothing needs to be done: run the grid"
        )
    return _cache_of(dataset, pixels)


def open_evaluation(dataset: DatasetSpec, card: ModelCard) -> Pixels:
    """Return the evaluation images of a target, from the file of decoded images if it exists.

    Raises:
        InputError: the data cannot be read or does not fit the card.
        Unavailable: there is no evaluation set.
    """
    pixels = open_split(dataset, "evaluate", card)
    return (_cache_of(dataset, pixels).open() if isinstance(pixels, FolderPixels) else None) or pixels


def _cache_of(dataset: DatasetSpec, pixels: FolderPixels) -> DecodedCache:
    code = hashlib.sha256(Path(__file__).with_name("pixels.py").read_bytes()).hexdigest()
    key = "\n".join([fingerprint(dataset), repr(pixels.shape), str(pixels.resize), code])
    name = f"{dataset.name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npy"
    return DecodedCache(decoded_folder() / name, pixels)
