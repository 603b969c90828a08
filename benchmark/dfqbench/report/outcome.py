"""Outcomes: what one place of the table shows, over the seeds of a method, model and scheme."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from dfqbench.report.columns import Value
from dfqbench.report.status import COLLAPSED, competes, finished, reason, word
from dfqbench.report.values import ABSENT
from dfqbench.run.store.record import Record


@dataclass(frozen=True, slots=True)
class Outcome:
    """One place of the table.

    Attributes:
        shown: text of each value, with the spread over seeds; or first a short word where no seed finished.
        means: mean over the finished seeds of each value, as printed, for comparisons; None where there is none.
        competes: whether these numbers may be the best.
        notes: what footnotes have to say.
    """

    shown: tuple[str, ...]
    means: tuple[float | None, ...]
    competes: bool
    notes: tuple[str, ...]


def outcome(records: Sequence[Record], values: Sequence[Value]) -> Outcome:
    """Sums up the seeds of one method, model and scheme."""
    good = [record for record in records if finished(record)]
    bad = [record for record in records if not finished(record)]
    notes = [_of_seed(record, f"{word(record)}: {reason(record)}", records) for record in bad]
    fallen = [record for record in good if record.status == COLLAPSED]
    notes += [_of_seed(record, "collapsed: no better than guessing", records) for record in fallen]
    flags = sorted({flag for record in good for flag in record.flags})
    if flags:
        notes.append(f"flagged: {', '.join(flags)}")
    if not good:
        words = sorted({word(record) for record in bad})
        shown = ("/".join(words) or ABSENT, *[ABSENT] * (len(values) - 1))
        return Outcome(shown, (None,) * len(values), False, tuple(notes))
    numbers = [[known for record in good if (known := value.read(record)) is not None] for value in values]
    return Outcome(
        tuple(
            _shown(value, found, first=place == 0)
            for place, (value, found) in enumerate(zip(values, numbers, strict=True))
        ),
        tuple(statistics.fmean(found) if found else None for found in numbers),
        any(competes(record) for record in good),
        tuple(dict.fromkeys(notes)),
    )


def _of_seed(record: Record, note: str, records: Sequence[Record]) -> str:
    return f"seed {record.seed}: {note}" if len(records) > 1 else note


def _shown(value: Value, numbers: Sequence[float], *, first: bool) -> str:
    """Mean, with deviation and number of seeds where these are wanted."""
    if not numbers:
        return ABSENT
    mean = value.show(statistics.fmean(numbers))
    if len(numbers) == 1 or not (first or value.spread):
        return mean
    deviation = statistics.stdev(numbers)
    spread = f"{deviation:.{value.digits}f}" if value.spread else value.show(deviation)
    return f"{mean} ± {spread}" + (f" ({len(numbers)})" if first else "")
