"""Per-image correctness, as records keep it: one bit an image, base64, in the order of the evaluation set."""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING, Any

from dfqbench.api.errors import InputError
from dfqbench.report.values import Record, number, text

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

EVALUATED_ON = ("dataset.name", "dataset.sha256", "dataset.n", "dataset.subset")
"""Keys that are the same where two records were evaluated on the same images."""


def correctness(record: Record) -> NDArray[np.bool_]:
    """Whether the student gave each image its label: bool (n,).

    Raises:
        InputError: the record has no bits, or they do not fit its number of images and its top-1.
    """
    import numpy as np

    cell, bits = text(record, "cell_id", "unknown"), record.get("correct")
    images, top1 = number(record, "dataset.n"), number(record, "top1")
    if not isinstance(bits, str) or not bits or not images or top1 is None:
        raise InputError(f"cell {cell} has no answer for each image", "run it again")
    try:
        raw = np.frombuffer(base64.b64decode(bits, validate=True), dtype=np.uint8)
        flags: Any = np.unpackbits(raw, count=int(images)).astype(bool) if len(raw) == -(-int(images) // 8) else None
    except (binascii.Error, ValueError):
        flags = None
    if flags is None or abs(100 * flags.mean() - top1) > 1e-6:
        raise InputError(f"the answers for each image of cell {cell} do not fit its top-1", "run it again")
    found: NDArray[np.bool_] = flags
    return found


def same_images(first: Record, second: Record) -> bool:
    """Whether two records were evaluated on the same images in the same order."""
    return all(text(first, key) == text(second, key) for key in EVALUATED_ON)
