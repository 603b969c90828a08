"""Images on disk, and as pixels."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dfqbench.api.errors import InputError
from dfqbench.run.store.record import Card, Record

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MOST_BYTES = 1 << 30
"""A file of kept images that claims to be larger is not read."""


def stored(file: Path) -> tuple[NDArray[np.float32], NDArray[np.int64] | None]:
    """Images (N, C, H, W) in normalised space and labels (N,) that a run has kept.

    Raises:
        InputError: the file holds something else.
    """
    import numpy as np
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        if file.stat().st_size > MOST_BYTES:
            raise InputError(f"{file} is too large for kept images", "delete it")
        tensors = load_file(file)
        images = tensors["images"].astype(np.float32)
    except (OSError, KeyError, ValueError, SafetensorError) as error:
        raise InputError(f"{file} cannot be read: {error}", "run its cell again") from error
    labels = tensors.get("labels")
    if images.ndim != 4 or not len(images) or (labels is not None and len(labels) != len(images)):
        raise InputError(f"{file} does not hold images (N, C, H, W) with as many labels", "run its cell again")
    if labels is not None and labels.ndim == 2:
        labels = labels.argmax(1)
    return images, None if labels is None else labels.astype(np.int64)


def pixels(images: NDArray[np.float32], record: Record) -> NDArray[np.uint8]:
    """Images as people see them: the card's normalisation undone, clipped to [0, 1], as (N, H, W, 3) of bytes.

    Raises:
        InputError: the record does not tell the normalisation of so many channels.
    """
    import numpy as np

    card = record.preprocessing.card or Card()
    mean, std, channels = card.mean, card.std, images.shape[1]
    if not len(mean) == len(std) == channels:
        raise InputError(f"the record does not tell how its {channels} channels were normalised", "run its cell again")
    shape = (1, channels, 1, 1)
    shown = images * np.asarray(std, np.float32).reshape(shape) + np.asarray(mean, np.float32).reshape(shape)
    shown = np.nan_to_num(shown, nan=0.0, posinf=1.0, neginf=0.0).clip(0, 1).transpose(0, 2, 3, 1)
    if channels not in {1, 3}:
        shown = shown.mean(3, keepdims=True)
    if shown.shape[3] == 1:
        shown = shown.repeat(3, axis=3)
    made: NDArray[np.uint8] = (255 * shown + 0.5).astype(np.uint8)
    return made
