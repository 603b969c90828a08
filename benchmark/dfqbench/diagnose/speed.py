"""Speed of synthesis relative to ZeroQ at equal images (DFFG's claim)."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable

from dfqbench.report.metrics import seconds_per_image
from dfqbench.report.record_access import CEILING, finished, model_name
from dfqbench.run.store.record import Record

REFERENCE = "zeroq"


def speeds(records: Iterable[Record]) -> dict[int, float]:
    """Return how many times faster than ZeroQ each record's source makes an image, by the record's `id`.

    The reference is the mean of the ZeroQ records of the same network, budget, precision and environment; records
    without one, or without a number of images, are left out, and so is the real-data control, which makes none.
    Seconds are those of a stand-alone synthesis.
    """
    reference: dict[tuple[object, ...], list[float]] = defaultdict(list)
    timed: list[tuple[Record, tuple[object, ...], float]] = []
    for record in records:
        seconds = seconds_per_image(record)
        if seconds and finished(record) and record.method != CEILING:
            key = (model_name(record), record.target, record.budget)
            place = (*key, record.precision, record.environment, record.threads)
            timed.append((record, place, seconds))
            if record.method == REFERENCE:
                reference[place].append(seconds)
    return {
        id(record): statistics.fmean(reference[place]) / seconds
        for record, place, seconds in timed
        if place in reference
    }
