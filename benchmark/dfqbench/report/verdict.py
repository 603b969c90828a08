"""Verdicts: what a measurement says about a claim, by a rule that looks at comparability before numbers."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dfqbench.report.book import ClaimBook, published_book
from dfqbench.report.claims import Claim
from dfqbench.report.columns import VALUES
from dfqbench.run.evaluate.accuracy import standard_error
from dfqbench.run.store.record import Record

PUBLISHED_BUDGET = "paper"
SAME_WEIGHTS = 0.1
"""Percentage points of full precision up to which weights count as the same."""
LEAST_TOLERANCE = 0.5
"""Percentage points that are granted however precise the measurement is."""
COMPARABLE = ("reproduced", "below", "above")
"""Verdicts in which the numbers had the last word."""
NEEDS_ORACLE = "needs oracle"
"""The claim is the best epoch on the test set, and the record holds the last one only."""
SLACK = 1e-9
"""For sums of decimal fractions: 0.1 is not more than 0.1."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """A claim beside a measurement.

    Attributes:
        claim: what was printed.
        word: `reproduced`, `below`, `above`, `other budget`, `other protocol`, `other parameters`, `other weights` or
            `needs oracle`.
        measured: what the claim was held against, in percent: the mean over seeds of the last state, or of the best
            snapshot where the claim is one; None where a seed has none.
        tolerance: percentage points that were granted; None where the numbers were not compared.
    """

    claim: Claim
    word: str
    measured: float | None
    tolerance: float | None

    def as_dict(self) -> dict[str, Any]:
        """Return the verdict with its claim as JSON data."""
        claim = self.claim
        return {
            "verdict": self.word,
            "measured": self.measured,
            "tolerance": self.tolerance,
            "top1": claim.top1,
            "fp_top1": claim.fp_top1,
            "drop": None if claim.drop is None else round(claim.drop, 4),
            "selection": claim.selection,
            "protocol": claim.protocol,
            "source": claim.source,
            "notes": claim.notes,
        }


def verdicts(records: Sequence[Record], book: ClaimBook | None = None) -> list[Verdict]:
    """Every claim about one cell, best comparable first, each with its verdict.

    The order looks at what was done and by whom it was printed, never at how the numbers compare.

    Args:
        records: the finished seeds of one method, model and scheme.
        book: holds the claims; None: the host's own.
    """
    if not records:
        return []
    known = book or published_book()
    judged = [judge(records, claim, known) for claim in known.about(records[0])]
    return sorted(judged, key=lambda verdict: _rank(records, verdict, known))


def judge(records: Sequence[Record], claim: Claim, book: ClaimBook | None = None) -> Verdict:
    """Judges one claim.

    What was done comes first: other budget, other protocol, other parameters, other weights; then the numbers.

    Args:
        records: the finished seeds of one method, model and scheme.
        claim: about the same method, model, data set and bits.
        book: what other sources print; None: the host's own.
    """
    best = claim.selection == "best"
    read = VALUES["oracle" if best else "top1"].read
    numbers = [known for record in records if (known := read(record)) is not None]
    # A mean over some of the seeds would be another number than the table's.
    measured = statistics.fmean(numbers) if numbers and len(numbers) == len(records) else None
    other = _other(records, claim, book or published_book())
    if other:
        return Verdict(claim, other, measured, None)
    if measured is None:
        return Verdict(claim, NEEDS_ORACLE, None, None)
    granted = tolerance(numbers, records[0].dataset.n)
    gap = measured - claim.top1
    if abs(gap) <= granted + SLACK:
        return Verdict(claim, "reproduced", measured, granted)
    return Verdict(claim, "below" if gap < 0 else "above", measured, granted)


def _other(records: Sequence[Record], claim: Claim, book: ClaimBook) -> str:
    """What was done in another way than the claim's authors did, the gravest first; empty: nothing."""
    if any(record.budget != PUBLISHED_BUDGET for record in records):
        return "other budget"
    if not _same_protocol(records, claim):
        return "other protocol"
    if not _same_parameters(records):
        return "other parameters"
    return "" if _same_weights(records, claim, book) else "other weights"


def tolerance(numbers: Sequence[float], images: int | None) -> float:
    """max(0.5, 2 sqrt(se^2 + sd^2)) in percentage points.

    Args:
        numbers: top-1 in percent, one for each seed; their sample standard deviation is sd (0 for one seed).
        images: images of the evaluation set; their binomial standard error at the mean is se (0 where not known).
    """
    error = standard_error(statistics.fmean(numbers), images) if images else 0.0
    deviation = statistics.stdev(numbers) if len(numbers) > 1 else 0.0
    return max(LEAST_TOLERANCE, 2 * math.sqrt(error**2 + deviation**2))


def _same_protocol(records: Sequence[Record], claim: Claim) -> bool:
    """Whether scheme, quantizer and the extent of the evaluation are those of the claim."""
    quantizer = claim.implemented.partition("+")[2]
    for record in records:
        protocol = record.scheme.protocol or record.scheme.label.partition("@")[2]
        named = record.quantizer.partition(":")[0] == quantizer
        # A plugin's claim names no quantizer: the method's own is meant.
        used = named if quantizer else not record.cross
        if protocol != claim.protocol or not used or record.dataset.subset:
            return False
    return True


def _same_parameters(records: Sequence[Record]) -> bool:
    """Whether every parameter is what the claim's method takes by itself, as far as records tell (older do not)."""
    return not any(record.changed_params for record in records)


def _same_weights(records: Sequence[Record], claim: Claim, book: ClaimBook) -> bool:
    """Whether full precision is within 0.1 of the source's; of any source's where this one does not print it."""
    printed = book.full_precisions(claim)
    mine = [record.fp_top1 for record in records]
    return all(
        full is not None and any(abs(full - known) <= SAME_WEIGHTS + SLACK for known in printed) for full in mine
    )


def _rank(records: Sequence[Record], verdict: Verdict, book: ClaimBook) -> tuple[object, ...]:
    claim = verdict.claim
    return not _same_protocol(records, claim), not _same_weights(records, claim, book), claim.distance
