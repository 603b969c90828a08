"""Images that a run has kept: reading them, and turning them into pixels."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from dfqbench.api.errors import InputError
from dfqbench.run.store.files import IMAGES_FILE, REAL_IMAGES_FILE, TRAINING
from dfqbench.run.store.record import Record
from dfqbench.run.store.record_parts import Card

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MOST_BYTES = 1 << 30  # larger files are not read


def load_kept_images(attempt: Path) -> tuple[NDArray[np.float32], NDArray[np.int64] | None]:
    """Read the images of a source that an attempt has kept; those of `real` from the data set.

    Raises:
        InputError: they are missing, or cannot be read.
    """
    file = attempt / REAL_IMAGES_FILE
    if not file.is_file():
        return load_images(attempt / IMAGES_FILE)
    from dfqbench.run.store.real_images import load_first

    source = load_first(file)
    return source.images.contiguous().numpy(), None if source.labels is None else source.labels.numpy()


def load_images(file: Path) -> tuple[NDArray[np.float32], NDArray[np.int64] | None]:
    """Read images (N, C, H, W) in normalised space, and labels (N,) where the source gave them (soft: the largest).

    Raises:
        InputError: the file is missing or holds something else.
    """
    import numpy as np
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        if file.stat().st_size > MOST_BYTES:
            raise InputError(f"{file} is too large for kept images", "delete it")
        tensors = load_file(file)
        images = tensors["images"].astype(np.float32)
    except FileNotFoundError as error:
        raise InputError(f"{file} is missing", "the attempt kept no images; run its cell again") from error
    except (OSError, KeyError, ValueError, SafetensorError) as error:
        raise InputError(f"{file} cannot be read: {error}", "run its cell again") from error
    labels = tensors.get("labels")
    if images.ndim != 4 or not len(images) or (labels is not None and len(labels) != len(images)):
        raise InputError(f"{file} does not hold images (N, C, H, W) with as many labels", "run its cell again")
    if labels is not None and labels.ndim == 2:
        labels = labels.argmax(1)
    return images, None if labels is None else labels.astype(np.int64)


def training_images(attempt: Path) -> dict[int, Path]:
    """Return files with a live source's images at points of its training, by step; empty for a fixed source."""
    files = (attempt.parent / TRAINING).glob("images-*.safetensors")
    steps = {int(match[1]): file for file in files if (match := re.fullmatch(r"images-(\d+)", file.stem))}
    return dict(sorted(steps.items()))


def pixels(images: NDArray[np.float32], record: Record) -> NDArray[np.uint8]:
    """Return images in display space: the card's normalisation undone, clipped to [0, 1], as (N, H, W, 3) of bytes.

    Raises:
        InputError: the record does not hold the normalisation of so many channels.
    """
    import numpy as np

    card = record.preprocessing.card or Card()
    channels = images.shape[1]
    if not len(card.mean) == len(card.std) == channels:
        raise InputError(f"the record does not tell how its {channels} channels were normalised", "run its cell again")
    mean, std = (np.asarray(values, np.float32).reshape(1, channels, 1, 1) for values in (card.mean, card.std))
    shown = np.nan_to_num(images * std + mean, nan=0.0, posinf=1.0, neginf=0.0).clip(0, 1).transpose(0, 2, 3, 1)
    if channels not in {1, 3}:
        shown = shown.mean(3, keepdims=True)
    if shown.shape[3] == 1:
        shown = shown.repeat(3, axis=3)
    made: NDArray[np.uint8] = (255 * shown + 0.5).astype(np.uint8)
    return made
