"""Contradictions within a record: numbers that do not follow from the others that it holds."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

from dfqbench.run.evaluate.accuracy import standard_error
from dfqbench.run.store.status import MEASURED

if TYPE_CHECKING:
    from dfqbench.run.store.record import Record

EXACT = 1e-6
"""Largest difference of percentages that were computed from the same answers."""
ROUNDED = 0.02
"""The same in a record without answers: other tools may round to two decimals."""
SECONDS = 0.05
"""Largest difference between the wall time and the sum of its parts."""
_PERCENT = {"top1": "top-1", "top5": "top-5", "fp_top1": "full-precision top-1", "agreement": "agreement"}


def contradictions(record: Record) -> list[str]:
    """Return what does not fit in a record, a phrase each; keys that it lacks are not checked."""
    values = {word: getattr(record, name) for name, word in _PERCENT.items()}
    found = [
        f"{word} {value:.2f} is no percentage"
        for word, value in values.items()
        if value is not None and not 0.0 <= value <= 100.0
    ]
    return found or [*_of_answers(record), *_of_accuracy(record), *_of_seconds(record)]


def _of_answers(record: Record) -> list[str]:
    if not record.correct:
        return []
    n, top1 = record.dataset.n or 0, record.top1
    right = _right(record.correct, n)
    if right is None or n < 1:
        return [f"its answers are not those of {n} images"]
    if top1 is None or abs(100.0 * right / n - top1) > EXACT:
        return [f"top-1 {_shown(top1)} is not that of its answers, {100.0 * right / n:.2f}"]
    for name in ("fp_top1", "top5", "agreement"):
        value = getattr(record, name)
        if value is not None and abs(value * n / 100.0 - round(value * n / 100.0)) > EXACT:
            return [f"{_PERCENT[name]} {value} % of {n} images is no whole number of them"]
    return []


def _right(text: str, images: int) -> int | None:
    """Return the number of right answers in the text of `accuracy.packed`; None: it holds another number of answers."""
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError:
        return None
    return (int.from_bytes(data) >> (-images % 8)).bit_count() if len(data) == -(-images // 8) else None


def _of_accuracy(record: Record) -> list[str]:
    slack = EXACT if record.correct else ROUNDED
    full, top1, n = record.fp_top1, record.top1, record.dataset.n
    if top1 is None:
        missing = record.status in MEASURED and not record.correct
        return [f"it is {record.status} without a top-1"] if missing else []
    found = []
    if record.top5 is not None and record.top5 < top1 - slack:
        found.append(f"top-5 {record.top5:.2f} is lower than top-1 {top1:.2f}")
    if record.top1_se is not None and n and n > 0:
        error = standard_error(top1, n)
        if abs(record.top1_se - error) > slack:
            found.append(f"standard error {record.top1_se:.2f} is not {error:.2f}, that of top-1 {top1:.2f}")
    if full is None:
        return found
    if record.drop is not None and abs(full - top1 - record.drop) > slack:
        found.append(f"drop {record.drop:.2f} is not full-precision top-1 {full:.2f} minus top-1 {top1:.2f}")
    # Where both give the same answer both are right or wrong, and where both are right they agree.
    if record.agreement is not None and not full + top1 - 100.0 - slack <= record.agreement <= (
        100.0 - abs(full - top1) + slack
    ):
        found.append(f"agreement {record.agreement:.2f} is impossible for top-1 {full:.2f} and {top1:.2f}")
    return found


def _of_seconds(record: Record) -> list[str]:
    spent, cpu = record.seconds, record.cpu_seconds
    for phase, seconds in (("synthesis", cpu.synthesis), ("quantization", cpu.quantization)):
        if seconds is not None and seconds < 0.0:
            return [f"its CPU seconds of {phase}, {seconds:.2f}, are negative"]
    parts = (spent.setup, spent.paid_synthesis, spent.quantization, spent.evaluation, spent.unattributed)
    known = [seconds for seconds in parts if seconds is not None]
    if spent.wall is None or len(known) < len(parts) or abs(sum(known) - spent.wall) <= SECONDS:
        return []
    return [f"its seconds sum to {sum(known):.2f}, not to the wall time {spent.wall:.2f}"]


def _shown(value: float | None) -> str:
    return "(none)" if value is None else f"{value:.2f}"
