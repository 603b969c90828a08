"""Speed of synthesis relative to ZeroQ at equal images (DFFG's claim)."""

from __future__ import annotations

import statistics
from collections.abc import Iterable

from dfqbench.report.metrics import seconds_per_image
from dfqbench.report.record_access import CEILING, finished, model_name
from dfqbench.run.store.record import Record

REFERENCE = "zeroq"


def speeds(records: Iterable[Record]) -> dict[int, float]:
    """How many times faster than ZeroQ each record's source makes an image, by the record's `id`.

    Held against the mean of the ZeroQ records of the same network, budget, precision and environment; records without
    one, or that do not tell how many images were made, are left out, and so is the real-data control, which makes none.
    Seconds are those of a stand-alone synthesis.
    """
    found = [record for record in records if finished(record) and record.method != CEILING]
    reference: dict[tuple[str | int | None, ...], list[float]] = {}
    for record in found:
        seconds = seconds_per_image(record)
        if record.method == REFERENCE and seconds:
            reference.setdefault(_alike(record), []).append(seconds)
    return {
        id(record): statistics.fmean(reference[_alike(record)]) / seconds
        for record in found
        if _alike(record) in reference and (seconds := seconds_per_image(record))
    }


def _alike(record: Record) -> tuple[str | int | None, ...]:
    return model_name(record), record.target, record.budget, record.precision, record.environment, record.threads
