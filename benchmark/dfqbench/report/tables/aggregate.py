"""Aggregation over the seeds of one method, model and scheme: what one place of the table shows."""

from __future__ import annotations

import statistics
from collections.abc import Sequence, Set
from dataclasses import dataclass

from dfqbench.report.comparison.wilson import wilson_error
from dfqbench.report.formatting import ABSENT
from dfqbench.report.metrics import Metric
from dfqbench.report.record_access import COLLAPSED, competes, finished, reason, status_word
from dfqbench.run.store.record import Record


@dataclass(frozen=True, slots=True)
class Aggregate:
    """What one place of the table shows."""

    texts: tuple[str, ...]  # of each metric, with ±; first the status where no seed finished
    means: tuple[float | None, ...]  # over the finished seeds; None where there is none
    competes: bool  # whether these numbers may be marked as the best
    notes: tuple[str, ...]  # for footnotes


def aggregate(records: Sequence[Record], metrics: Sequence[Metric], in_caption: Set[str] = frozenset()) -> Aggregate:
    """Aggregate the seeds of one method, model and scheme; flags `in_caption` get no footnote."""
    good = [record for record in records if finished(record)]
    bad = [record for record in records if not finished(record)]
    notes = [(record, f"{status_word(record)}: {reason(record)}") for record in bad]
    notes += [(record, "collapsed: no better than guessing") for record in good if record.status == COLLAPSED]
    texts = [f"seed {record.seed}: {note}" if len(records) > 1 else note for record, note in notes]
    flags = sorted({flag for record in good for flag in record.flags} - in_caption)
    if flags:
        texts.append(f"flagged: {', '.join(flags)}")
    images = good[0].dataset.n if good else None
    numbers = [[number for record in good if (number := metric.read(record)) is not None] for metric in metrics]
    shown = [
        _mean_and_spread(metric, seeds, images, first=place == 0)
        for place, (metric, seeds) in enumerate(zip(metrics, numbers, strict=True))
    ]
    if not good:
        shown[:1] = ["/".join(sorted({status_word(record) for record in bad}))]
    return Aggregate(
        tuple(shown),
        tuple(statistics.fmean(seeds) if seeds else None for seeds in numbers),
        any(competes(record) for record in good),
        tuple(dict.fromkeys(texts)),
    )


def _mean_and_spread(metric: Metric, numbers: Sequence[float], images: int | None, *, first: bool) -> str:
    if not numbers:
        return ABSENT
    mean = metric.show(statistics.fmean(numbers))
    if len(numbers) == 1:
        return f"{mean} ±{metric.show(wilson_error(numbers[0], images))}" if metric.of_images and images else mean
    if not (first or metric.spread):
        return mean
    return f"{mean} ± {metric.show(statistics.stdev(numbers))}" + (f" ({len(numbers)})" if first else "")
