"""Verdicts: a measurement compared with a published number, by a rule that checks comparability before numbers."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dfqbench.report.comparison.wilson import wilson_error
from dfqbench.report.literature.distance import SAME, differences, same_recipe
from dfqbench.report.literature.publication_index import PublicationIndex, published_index
from dfqbench.report.literature.published import PublishedNumber
from dfqbench.run.store.record import Record

PUBLISHED_BUDGET = "paper"
SAME_WEIGHTS = 0.1  # percentage points of full precision up to which weights count as the same
LEAST_TOLERANCE = 0.5  # percentage points that are granted however precise the measurement is
NEEDS_ORACLE = "needs oracle"  # the number is the best epoch on the test set, and the record holds the last one only
SLACK = 1e-9  # for sums of decimal fractions: 0.1 is not more than 0.1


@dataclass(frozen=True, slots=True)
class Verdict:
    """A published number beside a measurement."""

    number: PublishedNumber
    word: str  # `reproduced`, `below`, `above`, `other …` (budget, protocol, parameters, weights) or `needs oracle`
    measured: float | None  # percent, mean over seeds: of the last state, or the best snapshot where `number` is one
    tolerance: float | None = None  # percentage points; None where the numbers were not compared
    differs: tuple[str, ...] = ()  # what the source did otherwise, in words, as far as it is stated

    @property
    def distance(self) -> str:
        """What the source did otherwise, in one line."""
        return self.number.stated.marked(self.differs) or SAME

    def as_dict(self) -> dict[str, Any]:
        """Return the verdict with its published number as JSON data."""
        number = self.number
        return {
            "verdict": self.word,
            "measured": self.measured,
            "tolerance": self.tolerance,
            "top1": number.top1,
            "fp_top1": number.fp_top1,
            "drop": number.drop,
            "selection": number.selection,
            "protocol": number.protocol,
            "distance": self.distance,
            "not_stated": number.stated.not_stated,
            "protocol_from": number.stated.how,
            "source": number.source,
            "notes": number.notes,
        }


def verdicts(records: Sequence[Record], index: PublicationIndex | None = None) -> list[Verdict]:
    """Judge every published number about one cell, the most comparable first.

    The order depends on what was done and who printed the number, never on how the numbers compare.

    Args:
        records: the finished seeds of one method, model and scheme.
        index: published numbers; None: the host's own.
    """
    if not records:
        return []
    index = index or published_index()
    numbers = sorted(
        index.about(records[0]),
        key=lambda number: (
            not _same_protocol(records, number),
            not _same_weights(records, number, index),
            number.source_rank,
        ),
    )
    return [judge(records, number, index) for number in numbers]


def judge(records: Sequence[Record], number: PublishedNumber, index: PublicationIndex | None = None) -> Verdict:
    """Judge one published number.

    What was done comes first: other budget, other protocol, other parameters, other weights; then the numbers.

    Args:
        records: the finished seeds of one method, model and scheme.
        number: about the same method, model, data set and bits.
        index: what other sources print; None: the host's own.
    """
    if number.selection == "best":
        tops = [None if record.oracle is None else record.oracle.top1 for record in records]
    else:
        tops = [record.top1 for record in records]
    numbers = [top1 for top1 in tops if top1 is not None]
    # A mean over some of the seeds would be another number than the table's.
    measured = statistics.fmean(numbers) if len(numbers) == len(tops) else None
    difference = _difference(records, number, index or published_index())
    words = tuple(differences(records, number))
    if difference or measured is None:
        return Verdict(number, difference or NEEDS_ORACLE, measured, None, words)
    granted = tolerance(numbers, records[0].dataset.n)
    gap = measured - number.top1
    word = "reproduced" if abs(gap) <= granted + SLACK else "below" if gap < 0 else "above"
    return Verdict(number, word, measured, granted, words)


def tolerance(top1s: Sequence[float], images: int | None) -> float:
    """Return max(0.5, 2 sqrt(se^2 + sd^2)) in percentage points.

    Args:
        top1s: in percent, one for each seed; their sample standard deviation is sd (0 for one seed).
        images: images of the evaluation set; their binomial error (`wilson_error`) at the mean is se (unknown: 0).
    """
    error = wilson_error(statistics.fmean(top1s), images) if images else 0.0
    deviation = statistics.stdev(top1s) if len(top1s) > 1 else 0.0
    return max(LEAST_TOLERANCE, 2 * math.sqrt(error**2 + deviation**2))


def _difference(records: Sequence[Record], number: PublishedNumber, index: PublicationIndex) -> str:
    """Return the gravest difference between what was done and what the source did, or an empty text."""
    if any(record.budget != PUBLISHED_BUDGET for record in records):
        return "other budget"
    if not _same_protocol(records, number):
        return "other protocol"
    # Records of older schemas do not hold changed parameters.
    if any(record.changed_params for record in records):
        return "other parameters"
    return "" if _same_weights(records, number, index) else "other weights"


def _same_protocol(records: Sequence[Record], number: PublishedNumber) -> bool:
    """Return whether scheme, recipe and the extent of the evaluation are those of the source."""
    for record in records:
        protocol = record.scheme.protocol or record.scheme.label.partition("@")[2]
        mixed = record.scheme.mixed is not None
        if mixed or protocol != number.protocol or not same_recipe(record, number) or record.dataset.subset:
            return False
    return True


def _same_weights(records: Sequence[Record], number: PublishedNumber, index: PublicationIndex) -> bool:
    """Return whether full precision is within 0.1 of the source's, or of any source's where it prints none."""
    printed = index.full_precisions(number)
    return all(
        record.fp_top1 is not None and any(abs(record.fp_top1 - fp) <= SAME_WEIGHTS + SLACK for fp in printed)
        for record in records
    )
