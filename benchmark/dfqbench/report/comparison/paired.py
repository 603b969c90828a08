"""Paired comparison of two students on the same images: a sign-flip test, and the bootstrap of their difference.

The test asks how often the difference would be as large if each image's answers were swapped between the two by chance,
those of all seeds together. Of one seed it is McNemar's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

EXACT_UP_TO = 1000  # most images on which two students differ for the exact test; above, the chi-squared one
RESAMPLES = 10_000
CONFIDENCE = 0.95
LEVEL = 0.05  # a smaller p (of several tests, a smaller q) is significant


@dataclass(frozen=True, slots=True)
class Paired:
    """Two students' answers to the same images."""

    n: int  # images
    first: float  # accuracy of the first, in percent
    second: float  # accuracy of the second, in percent
    only_first: float  # images that only the first gets right (mean over seeds)
    only_second: float  # images that only the second gets right (mean over seeds)
    low: float  # lower end of the bootstrap interval of first - second, in percentage points
    high: float  # its upper end
    p: float  # of the sign-flip test, two-sided
    exact: bool  # whether p is exact

    @property
    def difference(self) -> float:
        """First minus second, in percentage points."""
        return self.first - self.second


def compare_paired(first: Sequence[NDArray[np.bool_]], second: Sequence[NDArray[np.bool_]]) -> Paired:
    """Compare answers to the same images.

    Args:
        first: bool (n,) for each seed of the first student.
        second: the same of the second student, as many seeds.

    Raises:
        ValueError: other numbers of seeds or images.
    """
    import numpy as np

    a, b = np.stack(first).astype(float), np.stack(second).astype(float)
    if a.shape != b.shape:
        raise ValueError(f"answers of shape {a.shape} and {b.shape} cannot be paired")
    only_first, only_second = float((a > b).sum(1).mean()), float((a < b).sum(1).mean())
    low, high = bootstrap_interval((a - b).mean(0))
    p, exact = sign_flip_test((a - b).sum(0).astype(int))
    return Paired(
        n=a.shape[1],
        first=100 * float(a.mean()),
        second=100 * float(b.mean()),
        only_first=only_first,
        only_second=only_second,
        low=low,
        high=high,
        p=p,
        exact=exact,
    )


def paired_test(first: Sequence[NDArray[np.bool_]], second: Sequence[NDArray[np.bool_]]) -> tuple[float, float]:
    """Return first minus second in percentage points, and the p of `sign_flip_test`; arguments as `compare_paired`."""
    import numpy as np

    gaps = np.zeros(len(first[0]), dtype=np.int64)
    for a, b in zip(first, second, strict=True):
        gaps += a
        gaps -= b
    return 100 * float(gaps.sum()) / (len(gaps) * len(first)), sign_flip_test(gaps)[0]


def adjusted(ps: Sequence[float]) -> list[float]:
    """Return each p corrected for their number, after Benjamini and Hochberg (1995).

    Of the differences whose corrected p (q) is below 0.05, an expected 5 % at most are chance.
    """
    qs, smallest = [1.0] * len(ps), 1.0
    for rank, at in sorted(enumerate(sorted(range(len(ps)), key=lambda at: ps[at]), start=1), reverse=True):
        smallest = min(smallest, ps[at] * len(ps) / rank)
        qs[at] = smallest
    return qs


def sign_flip_test(gaps: NDArray[np.int64]) -> tuple[float, bool]:
    """Test whether the sum of gaps is more than chance, if each could as well have the other sign.

    Args:
        gaps: (n,), seeds with which only the first student is right minus those with which only the second is.

    Returns:
        The two-sided p, and whether it is exact: it is where few images differ, else chi-squared with continuity
        correction.
    """
    import numpy as np

    sizes, counts = np.unique(np.abs(gaps[gaps != 0]), return_counts=True)
    total = abs(int(gaps.sum()))
    if counts.sum() > EXACT_UP_TO:
        # The tail of chi-squared with one degree of freedom.
        return math.erfc(max(0.0, total - 1.0) / math.sqrt(2.0 * float((sizes**2 * counts).sum()))), False
    chances = np.ones(1)  # of the sums of gaps so far, from the smallest in steps of 1
    for size, count in zip(sizes, counts, strict=True):
        of_size = np.zeros(2 * size * count + 1)
        steps = np.arange(1, count + 1)
        of_size[:: 2 * size] = 0.5**count * np.cumprod(np.append(1.0, (count + 1 - steps) / steps))
        chances = np.convolve(chances, of_size)
    sums = np.abs(np.arange(len(chances)) - len(chances) // 2)
    return min(1.0, float(chances[sums >= total].sum())), True


def bootstrap_interval(gaps: NDArray[np.float64], seed: int = 0) -> tuple[float, float]:
    """Return the percentile bootstrap over images of the mean of `gaps`, in percent.

    Resampling n images is drawing how often each distinct gap occurs, so that one multinomial draw makes a resample.

    Args:
        gaps: (n,), first minus second for each image.
        seed: of the resamples; the same answers always have the same interval.
    """
    import numpy as np

    values, counts = np.unique(gaps, return_counts=True)
    n = int(counts.sum())
    draws = np.random.default_rng(seed).multinomial(n, counts / n, size=RESAMPLES)
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(100 * (draws @ values) / n, [tail, 100 - tail])
    return float(low), float(high)
