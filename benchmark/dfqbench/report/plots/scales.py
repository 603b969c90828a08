"""Scales that every plot shares: which part of an axis is shown, and where its ticks are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

LEAST_SPAN = 10.0  # percentage points that an axis of accuracies shows, so that noise is no mountain
MOST_TICKS = 6  # of a time axis: more labels run into each other
_FINE = (
    *(0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0),
    *(60.0 * minutes for minutes in (1, 2, 5, 10, 20, 30)),
    *(3600.0 * hours for hours in (1, 2, 5, 10, 20, 50, 100, 200, 500)),
)
_COARSE = (0.01, 0.1, 1.0, 10.0, 60.0, 600.0, 3600.0, 36_000.0, 360_000.0)


def accuracy_span(accuracies: Iterable[float]) -> tuple[float, float]:
    """Return the ends of an axis of accuracies in percent."""
    known = list(accuracies)
    low, high = min(known, default=0.0), max(known, default=100.0)
    middle, half = (low + high) / 2, max(LEAST_SPAN / 2, 0.55 * (high - low))
    # A little room above 100 %, so that a marker there is whole.
    middle = max(half, min(middle, 101.0 - half))
    return middle - half, middle + half


def accuracy_ticks(low: float, high: float) -> list[float]:
    """Return the round accuracies of an axis; none above 100 %."""
    step = next(step for step in (1, 2, 5, 10, 20, 25) if high - low <= 6 * step)
    return [float(tick) for tick in range(0, 101, step) if low <= tick <= high]


def time_span(seconds: Iterable[float]) -> tuple[float, float]:
    """Return the ends of a logarithmic axis of times: a decade or more."""
    known = [max(_FINE[0], spent) for spent in seconds]
    low, high = min(known, default=1.0) / 1.5, max(known, default=1.0) * 1.5
    missing = max(1.0, 10.0 / (high / low)) ** 0.5
    return low / missing, high * missing


def time_ticks(low: float, high: float) -> Sequence[float]:
    """Return the round times of an axis: few enough that their labels stay apart."""
    fine, coarse = ([tick for tick in ticks if low <= tick <= high] for ticks in (_FINE, _COARSE))
    return fine if len(fine) <= MOST_TICKS else coarse
