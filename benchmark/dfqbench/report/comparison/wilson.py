"""The binomial error of an accuracy, from the Wilson score interval."""

from __future__ import annotations

import math


def wilson_error(top1: float, images: int) -> float:
    """Return half the width of the Wilson score interval for z = 1, in percentage points.

    Between 10 and 90 % it is the binomial standard error sqrt(p (1 - p) / n) to two digits. At 0 and 100 %, where that
    is 0, it is 50 / (n + 1).

    Args:
        top1: accuracy in percent.
        images: images of the evaluation set, at least one.
    """
    share = top1 / 100.0
    variance = max(0.0, share * (1.0 - share)) / images
    return 100.0 * math.sqrt(variance + 1.0 / (4.0 * images**2)) / (1.0 + 1.0 / images)
