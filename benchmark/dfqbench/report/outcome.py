"""Outcomes: what one place of the table shows, over the seeds of a method, model and scheme."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from dfqbench.report.values import ABSENT, Record, duration, items, number, text

FINISHED = frozenset({"ok", "collapsed", "finished", "done", "complete"})
"""Statuses of a cell whose numbers count."""


OURS = frozenset(
    {"Invalid", "Collapsed", "Timeout", "Preempted", "WorkerDied", "Unavailable", "Skip", "PluginError", "UsageError"}
    | {"InputError", "NonFiniteError", "DfqError"}
)
"""Types of errors whose messages say everything; others are shown with their type."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One place of the table.

    Attributes:
        top1: percent, with the spread over seeds; or a short word where no seed finished.
        drop: percent points below full precision.
        synthesis: time.
        notes: what footnotes have to say.
    """

    top1: str
    drop: str
    synthesis: str
    notes: tuple[str, ...]


def finished(record: Record) -> bool:
    """Whether the record's numbers count."""
    return text(record, "status", "finished") in FINISHED and number(record, "top1") is not None


def word(record: Record) -> str:
    """What the table shows instead of a number."""
    status = text(record, "status", "failed")
    return "no result" if status in FINISHED else status


def reason(record: Record) -> str:
    """Why there is no number, or none that counts; one line."""
    message = " ".join(text(record, "error.message").split())
    kind = text(record, "error.type")
    ours = not kind or kind in OURS
    phase = text(record, "error.phase")
    what = message if ours else f"{kind}: {message}" if message else kind
    what = what or text(record, "reason") or ", ".join(map(str, items(record, "flags"))) or "no reason recorded"
    return f"{what} (in {phase})" if phase else what


def drop(record: Record) -> float | None:
    """Percent points below full precision; computed where the record does not hold it."""
    recorded = number(record, "drop")
    full, top1 = number(record, "fp_top1"), number(record, "top1")
    if recorded is not None or full is None or top1 is None:
        return recorded
    return full - top1


def outcome(records: Sequence[Record]) -> Outcome:
    """Sums up the seeds of one method, model and scheme."""
    good = [record for record in records if finished(record)]
    bad = [record for record in records if not finished(record)]
    notes = [f"{word(record)}: {reason(record)}" for record in bad]
    if len(records) > 1:
        notes = [f"seed {text(record, 'seed')}: {note}" for record, note in zip(bad, notes, strict=True)]
    guessing = [record for record in good if text(record, "status") == "collapsed"]
    if guessing:
        seeds = ", ".join(text(record, "seed") for record in guessing)
        notes.append("collapsed: no better than guessing" + (f" (seeds {seeds})" if len(good) > 1 else ""))
    flags = sorted({str(flag) for record in good for flag in items(record, "flags")})
    if flags:
        notes.append(f"flagged: {', '.join(flags)}")
    if not good:
        words = sorted({word(record) for record in bad})
        return Outcome("/".join(words) or ABSENT, ABSENT, ABSENT, tuple(notes))
    drops = [known for record in good if (known := drop(record)) is not None]
    times = [known for record in good if (known := number(record, "seconds.synthesis")) is not None]
    return Outcome(
        _mean_and_spread([number(record, "top1") or 0.0 for record in good]),
        f"{statistics.fmean(drops):.2f}" if drops else ABSENT,
        duration(statistics.fmean(times) if times else None),
        tuple(notes),
    )


def _mean_and_spread(numbers: Sequence[float]) -> str:
    if len(numbers) == 1:
        return f"{numbers[0]:.2f}"
    return f"{statistics.fmean(numbers):.2f} ± {statistics.stdev(numbers):.2f} ({len(numbers)})"
