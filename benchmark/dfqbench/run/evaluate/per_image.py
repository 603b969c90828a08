"""Answers image by image: packing them for a record, and the standard error of their mean."""

from __future__ import annotations

import base64
import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def standard_error(top1: float, images: int) -> float:
    """Return the binomial standard error of an accuracy, in percentage points.

    Args:
        top1: accuracy in percent.
        images: number of images, at least 1.
    """
    share = top1 / 100.0
    return 100.0 * math.sqrt(max(0.0, share * (1.0 - share)) / images)


def packed(flags: NDArray[np.bool_]) -> str:
    """Return booleans (n,) as base64 of bits, the first in the highest bit."""
    import numpy as np

    return base64.b64encode(np.packbits(flags).tobytes()).decode("ascii")


def unpacked(text: str, images: int) -> NDArray[np.bool_]:
    """Read the text of `packed`: bool (n,).

    Raises:
        ValueError: it is no base64, or holds another number of images.
    """
    import numpy as np

    found = np.frombuffer(base64.b64decode(text, validate=True), dtype=np.uint8)
    if len(found) != -(-images // 8):
        raise ValueError(f"{len(found)} bytes do not hold {images} images")
    return np.unpackbits(found, count=images).astype(bool)
