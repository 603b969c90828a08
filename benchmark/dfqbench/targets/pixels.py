"""Pixels: read the images of a split, before normalisation."""

from __future__ import annotations

import os
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from dfqbench.api.card import ModelCard
from dfqbench.api.errors import InputError, Unavailable
from dfqbench.targets.layouts import class_folders
from dfqbench.targets.spec import DatasetSpec, digits_file

Split = Literal["evaluate", "train"]
Array = npt.NDArray[np.uint8]

DIGITS_EVALUATED = 540
"""Evaluation images of the 1,797 digits."""
RESIZE_RATIO = 0.875
"""Crop over shorter side of the resized image (methods.md 0.4)."""
SUFFIXES = (".jpeg", ".jpg", ".png", ".bmp", ".webp")
_DEEP_MODES = ("I", "F")
"""Pillow's modes of 16 and 32 bits, whose values above 255 it turns into white."""
_THREADS = 8


@dataclass(frozen=True, slots=True)
class ArrayPixels:
    """Images that lie in memory as one array.

    Attributes:
        images: uint8 (N, H, W, C).
        labels: classes, (N,).
        scale: value of a white pixel.
    """

    images: Array
    labels: npt.NDArray[np.int64]
    scale: float

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) of one image."""
        _, height, width, channels = self.images.shape
        return height, width, channels

    def stream(self, indices: Sequence[int], size: int) -> Iterator[Array]:
        """Yield uint8 (n, H, W, C), `size` images at a time, in the order of `indices`."""
        for start in range(0, len(indices), size):
            yield self.images[np.asarray(indices[start : start + size])]


@dataclass(frozen=True, slots=True)
class FolderPixels:
    """Image files, decoded and cropped by a few threads when they are needed.

    Attributes:
        files: the image files.
        labels: classes, (N,).
        shape: (H, W, C) of the crop.
        resize: shorter side before the crop; 0: no resize.
        scale: value of a white pixel.
    """

    files: tuple[Path, ...]
    labels: npt.NDArray[np.int64]
    shape: tuple[int, int, int]
    resize: int
    scale: float = 255.0

    def stream(self, indices: Sequence[int], size: int) -> Iterator[Array]:
        """Yield uint8 (n, H, W, C), `size` images at a time, in the order of `indices`; decode one batch ahead."""
        pending: deque[list[Future[Array]]] = deque()
        with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
            try:
                for start in range(0, len(indices), size):
                    batch = indices[start : start + size]
                    pending.append([pool.submit(self._decode, self.files[index]) for index in batch])
                    if len(pending) > 1:
                        yield np.stack([future.result() for future in pending.popleft()])
                while pending:
                    yield np.stack([future.result() for future in pending.popleft()])
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _decode(self, path: Path) -> Array:
        from PIL import Image
        from torchvision.transforms.v2 import functional as transform

        height, width, _ = self.shape
        try:
            if path.is_fifo():
                raise InputError(f"cannot read the image {path}: it is a named pipe", "replace the file")
            with Image.open(path) as file:
                mode = file.mode
                image: Any = file.convert("RGB")
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise InputError(f"cannot read the image {path}: {error}", "replace the file") from error
        if mode.startswith(_DEEP_MODES):
            raise InputError(
                f"cannot read the image {path}: its pixels have more than 8 bits ({mode})", "save it with 8 bits"
            )
        if self.resize:
            image = transform.resize(image, [self.resize], transform.InterpolationMode.BILINEAR)
        if image.height < height or image.width < width:
            raise InputError(
                f"{path} has {image.width}x{image.height} pixels, the crop needs {width}x{height}",
                "set resize for this data set, or use a model with a smaller input",
            )
        if self.resize:
            image = transform.center_crop(image, [height, width])
        else:
            # An odd margin: torchvision rounds half to even, plain slicing down. Published accuracies of resized
            # images are torchvision's; those of images that were stored cropped come from slicing.
            left, top = (image.width - width) // 2, (image.height - height) // 2
            image = image.crop((left, top, left + width, top + height))
        return np.asarray(image, dtype=np.uint8)


Pixels = ArrayPixels | FolderPixels
"""Images of a split."""


def open_split(dataset: DatasetSpec, split: Split, card: ModelCard) -> Pixels:
    """Open a split of a data set in the size that a network takes.

    Args:
        dataset: the data set.
        split: `evaluate` or `train`.
        card: the network's card.

    Raises:
        InputError: files are missing or malformed, or do not fit the card.
        Unavailable: the data set has no such split.
    """
    if dataset.classes != card.classes:
        raise InputError(
            f"target '{dataset.name}' has {dataset.classes} classes, the model gives {card.classes}",
            "use a model with weights for this target, or correct classes in targets.toml",
        )
    path = dataset.evaluate if split == "evaluate" else dataset.train
    if path is None and dataset.kind != "digits":
        what = "training split" if split == "train" else "evaluation set"
        raise Unavailable(f"target '{dataset.name}' has no {what}", f"name one with {split} = in targets.toml")
    if path is None:
        pixels: Pixels = _digits(split)
    elif dataset.kind == "imagenet-folder":
        pixels = _folder(dataset, path, card)
    elif dataset.kind == "npz":
        pixels = _npz(path)
    else:
        pixels = _torchvision(dataset, path, split)
    _check(dataset, str(path or dataset.name), pixels, card)
    return pixels


def digits_evaluated(labels: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Select the evaluation images of the digits: a fixed, stratified 540 of 1,797.

    The images are put in order of class and, within a class, of scikit-learn's order; position p of N is an
    evaluation image if floor((p+1)*540/N) > floor(p*540/N): every 3.3-th image. Without random numbers the split
    cannot change with a library.

    Args:
        labels: class of each digit in scikit-learn's order.

    Returns:
        True for each evaluation image, (N,).
    """
    count = len(labels)
    order = np.argsort(labels, kind="stable")
    place = np.arange(count)
    evaluated = np.zeros(count, dtype=np.bool_)
    evaluated[order[((place + 1) * DIGITS_EVALUATED) // count > (place * DIGITS_EVALUATED) // count]] = True
    return evaluated


def _digits(split: Split) -> ArrayPixels:
    file = digits_file()
    if file is None:
        raise Unavailable("scikit-learn, which has the digits, is not installed", "pip install scikit-learn")
    # Read without importing scikit-learn, which takes a second: rows of 64 pixels and a label. Pixels are whole
    # numbers from 0 to 16, so that uint8 holds them exactly.
    rows = np.loadtxt(file, delimiter=",").astype(np.uint8)
    labels = rows[:, -1].astype(np.int64)
    chosen = digits_evaluated(labels) == (split == "evaluate")
    return ArrayPixels(rows[chosen, :-1].reshape(-1, 8, 8, 1), labels[chosen], 16.0)


def _npz(path: Path) -> ArrayPixels:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in ("x", "y") if key in file.files}
    except Exception as error:  # a damaged archive raises from zipfile, zlib or numpy
        raise InputError(f"{path} is not a readable .npz: {error}", "copy or fetch it again") from error
    if len(arrays) < 2:
        raise InputError(f"{path} lacks the array '{'y' if 'x' in arrays else 'x'}'", "save x (images) and y (labels)")
    images, labels = arrays["x"], arrays["y"]
    if images.ndim == 3:
        images = images[..., None]
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3):
        raise InputError(
            f"{path}: x is {images.dtype} {images.shape}", "it should be uint8 (N, H, W, C) with 1 or 3 channels"
        )
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or len(labels) != len(images):
        raise InputError(
            f"{path}: y is {labels.dtype} {labels.shape} for {len(images)} images", "it should be whole numbers (N,)"
        )
    return ArrayPixels(images, labels.astype(np.int64), 255.0)


def _torchvision(dataset: DatasetSpec, path: Path, split: Split) -> ArrayPixels:
    from torchvision import datasets

    reader = {10: datasets.CIFAR10, 100: datasets.CIFAR100}.get(dataset.classes)
    if reader is None or path.name != reader.base_folder:
        expected = "cifar-10-batches-py with 10 classes or cifar-100-python with 100"
        raise InputError(f"{path} with {dataset.classes} classes is not a torchvision layout", f"use {expected}")
    try:
        with warnings.catch_warnings():
            # numpy warns of the types in the official pickles, which are old.
            warnings.simplefilter("ignore")
            # torchvision compares each file with its published MD5 before it unpickles anything.
            loaded = reader(str(path.parent), train=split == "train", download=False)
    except (RuntimeError, OSError) as error:
        raise InputError(f"{path} is incomplete or damaged", f"run: dfqbench fetch {dataset.name}") from error
    return ArrayPixels(np.asarray(loaded.data), np.asarray(loaded.targets, dtype=np.int64), 255.0)


def _folder(dataset: DatasetSpec, path: Path, card: ModelCard) -> FolderPixels:
    folders = class_folders(path)
    if not folders:
        raise InputError(f"{path} has no class folders", "put images at <wnid>/*.JPEG below it")
    if len(folders) < dataset.classes and dataset.subset_of is None:
        raise InputError(
            f"{path} has {len(folders)} of the {dataset.classes} classes of '{dataset.name}'",
            "complete it, or declare it under its own name with subset_of",
        )
    files = [
        (file, index)
        for name, index in folders.items()
        for file in sorted((path / name).iterdir())
        if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")
    ]
    channels, height, width = card.input_size
    if dataset.crop is not None and dataset.crop != height:
        raise InputError(
            f"target '{dataset.name}' is cropped to {dataset.crop} pixels, the model takes {height}",
            "change crop in targets.toml, or use another model",
        )
    resize = int(min(height, width) / RESIZE_RATIO) if dataset.resize is None else dataset.resize
    labels = np.asarray([index for _, index in files], dtype=np.int64)
    return FolderPixels(tuple(file for file, _ in files), labels, (height, width, channels), resize)


def _check(dataset: DatasetSpec, where: str, pixels: Pixels, card: ModelCard) -> None:
    if not len(pixels.labels):
        raise InputError(f"{where} has no images", "put the images there, or correct the path")
    low, high = int(pixels.labels.min()), int(pixels.labels.max())
    if low < 0 or high >= dataset.classes:
        raise InputError(
            f"{where}: label {high if high >= dataset.classes else low} is outside 0..{dataset.classes - 1}",
            f"correct classes of '{dataset.name}' in targets.toml, or the labels",
        )
    height, width, channels = pixels.shape
    if (channels, height, width) != card.input_size or channels not in (1, 3):
        taken = "x".join(str(size) for size in card.input_size)
        raise InputError(
            f"{where} has {channels}x{height}x{width} images, the model takes {taken}", "use a model for such images"
        )
