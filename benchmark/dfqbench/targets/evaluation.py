"""Evaluation images of a target, normalised for a network; and training images for the `real` control."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from dfqbench.api.card import ModelCard
from dfqbench.api.errors import InputError, UsageError
from dfqbench.targets.decoded_cache import open_evaluation
from dfqbench.targets.pixels import Array, Pixels, open_split
from dfqbench.targets.spec import DatasetSpec

MEMORY_LIMIT = 2**30
"""Bytes of decoded images that are kept in memory; a larger set is decoded again for each pass."""
_CHUNK = 256


class EvaluationSet:
    """Evaluation images in a network's input space.

    Args:
        pixels: all images of the split.
        indices: which of them, in order.
        card: the network's card.
        subset: description of the selection, or None: all images.
    """

    def __init__(self, pixels: Pixels, indices: Sequence[int], card: ModelCard, subset: str | None) -> None:
        self._pixels = pixels
        self._indices = list(indices)
        self._card = card
        self.subset = subset
        self.labels: Tensor = torch.from_numpy(pixels.labels[np.asarray(self._indices)])
        self._kept: Array | None = None
        if len(self._indices) * int(np.prod(pixels.shape)) <= MEMORY_LIMIT:
            self._kept = np.concatenate(list(pixels.stream(self._indices, _CHUNK)))

    @property
    def n(self) -> int:
        """Number of images."""
        return len(self._indices)

    def batches(self, size: int, device: torch.device | str = "cpu") -> Iterator[tuple[Tensor, Tensor]]:
        """Iterate over the set once, in a fixed order.

        Args:
            size: images in a batch; the last one may have fewer.
            device: where to put them.

        Yields:
            Images (N, C, H, W), float32, normalised, channels-last; labels int64 (N,).

        Raises:
            UsageError: the size is not positive.
            InputError: an image file cannot be decoded.
        """
        if size < 1:
            raise UsageError(f"a batch cannot have {size} images", "give at least 1")
        for raw, labels in zip(self.raw(size), torch.split(self.labels, size), strict=True):
            yield normalize(raw, self._pixels.scale, self._card, device), labels.to(device)

    def raw(self, size: int) -> Iterator[Array]:
        """Yield pixels as stored, uint8 (n, H, W, C), `size` images at a time."""
        if self._kept is None:
            yield from self._pixels.stream(self._indices, size)
            return
        for start in range(0, self.n, size):
            yield self._kept[start : start + size]


def load_evaluation(dataset: DatasetSpec, card: ModelCard, limit: int | None = None, seed: int = 0) -> EvaluationSet:
    """Open the evaluation set of a target.

    Args:
        dataset: the data set.
        card: the network's card: input size and normalisation.
        limit: most images; they are chosen at random, since some sets are sorted by class. None: all.
        seed: seed of that choice.

    Raises:
        InputError: files are missing or malformed, or do not fit the card.
        UsageError: the limit is not positive.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"cannot evaluate {limit} images", "give a limit of at least 1")
    pixels = open_evaluation(dataset, card)
    total = len(pixels.labels)
    if limit is None or limit >= total:
        return EvaluationSet(pixels, range(total), card, None)
    chosen = sorted(_permutation(total, seed)[:limit])
    return EvaluationSet(pixels, chosen, card, f"random {limit} of {total}, seed {seed}")


def choose_training(
    dataset: DatasetSpec, card: ModelCard, count: int | None, seed: int, exclude: EvaluationSet
) -> tuple[list[int], int]:
    """Choose training images for the `real` control.

    Args:
        dataset: the data set.
        card: the network's card.
        count: number of images; None or more than there are: all.
        seed: seed of the choice and its order.
        exclude: images that must not occur.

    Returns:
        Numbers of the images in the training split; how many of the images looked at were dropped because they equal
        an image of `exclude`.

    Raises:
        Unavailable: the data set has no training split.
        InputError: files are missing or malformed, or do not fit the card.
    """
    pixels = open_split(dataset, "train", card)
    order = _permutation(len(pixels.labels), seed)
    count = len(order) if count is None else count
    if count < 1:
        raise UsageError(f"cannot take {count} training images", "give at least 1")
    evaluated = {_digest(image) for batch in exclude.raw(_CHUNK) for image in batch}
    chosen: list[int] = []
    start = 0
    while len(chosen) < count and start < len(order):
        # Decode only as many as may still be needed.
        indices = order[start : start + min(_CHUNK, count - len(chosen))]
        start += len(indices)
        batch = next(iter(pixels.stream(indices, len(indices))))
        chosen += [index for index, image in zip(indices, batch, strict=True) if _digest(image) not in evaluated]
    return chosen, start - len(chosen)


def load_training(dataset: DatasetSpec, card: ModelCard, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return training images by their numbers in the training split.

    Returns:
        Images (N, C, H, W), float32, normalised, channels-last; labels int64 (N,).

    Raises:
        Unavailable: the data set has no training split.
        InputError: files are missing or malformed, or do not fit the card or the numbers.
    """
    pixels = open_split(dataset, "train", card)
    if any(not 0 <= index < len(pixels.labels) for index in indices):
        raise InputError(f"the training split of '{dataset.name}' has {len(pixels.labels)} images, not those named")
    batches = list(pixels.stream(list(indices), _CHUNK))
    raw = np.concatenate(batches) if batches else np.zeros((0, *pixels.shape), dtype=np.uint8)
    labels = torch.from_numpy(pixels.labels[np.asarray(indices, dtype=np.int64)].astype(np.int64))
    return normalize(raw, pixels.scale, card, "cpu"), labels


def normalize(raw: Array, scale: float, card: ModelCard, device: torch.device | str) -> Tensor:
    """Map stored pixels to a network's input space.

    Args:
        raw: uint8 (N, H, W, C).
        scale: value of a white pixel.
        card: mean and std for pixels in [0, 1].
        device: where to put the result; the bytes are moved, then converted.

    Returns:
        (raw / scale - mean) / std as float32 (N, C, H, W), channels-last.
    """
    images = torch.from_numpy(np.ascontiguousarray(raw)).to(device).permute(0, 3, 1, 2).to(torch.float32)
    mean = torch.tensor(card.mean, device=device).view(1, -1, 1, 1)
    std = torch.tensor(card.std, device=device).view(1, -1, 1, 1)
    images = images.div_(scale).sub_(mean).div_(std)
    return images.contiguous(memory_format=torch.channels_last)


def _permutation(total: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    order: list[int] = torch.randperm(total, generator=generator).tolist()
    return order


def _digest(image: Array) -> bytes:
    return hashlib.blake2b(image.tobytes(), digest_size=16).digest()
