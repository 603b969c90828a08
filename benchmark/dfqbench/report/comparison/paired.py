"""Paired comparison of two students on the same images: McNemar's test, and the bootstrap of their difference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

EXACT_UP_TO = 1000  # most images on which two students differ for the exact binomial test; above, the chi-squared one
RESAMPLES = 10_000
CONFIDENCE = 0.95
LEVEL = 0.05  # a smaller p is significant


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
    p: float | None  # McNemar's, two-sided; None over several seeds, whose answers to an image are not independent
    exact: bool  # whether p is the exact binomial one

    @property
    def difference(self) -> float:
        """First minus second, in percentage points."""
        return self.first - self.second

    @property
    def differs(self) -> bool:
        """Whether the difference is more than chance: by McNemar's test, over seeds by the interval."""
        return self.p < LEVEL if self.p is not None else not self.low <= 0 <= self.high


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
    single = len(a) == 1
    return Paired(
        n=a.shape[1],
        first=100 * float(a.mean()),
        second=100 * float(b.mean()),
        only_first=only_first,
        only_second=only_second,
        low=low,
        high=high,
        p=mcnemar(round(only_first), round(only_second)) if single else None,
        exact=single and only_first + only_second <= EXACT_UP_TO,
    )


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the two-sided p of McNemar's test, from the numbers of images that only one student gets right.

    Exact for few images, else chi-squared with continuity correction.
    """
    from scipy import stats

    different = only_first + only_second
    if different == 0:
        return 1.0
    if different <= EXACT_UP_TO:
        return float(stats.binomtest(only_first, different, 0.5).pvalue)
    statistic = max(0.0, abs(only_first - only_second) - 1.0) ** 2 / different
    return float(stats.chi2.sf(statistic, 1))


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
