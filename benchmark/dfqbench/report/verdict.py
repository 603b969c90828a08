"""Verdicts: what a measurement says about a claim, by a rule that looks at comparability before numbers."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

from dfqbench.report.claims import Claim, published_claims
from dfqbench.report.published import dataset_key, model_key
from dfqbench.report.values import Record, number, standard_error, text

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
        word: `reproduced`, `below`, `above`, `other weights`, `other protocol`, `other budget` or `needs oracle`.
        measured: what the claim was held against, in percent: the mean over seeds of the last state, or of the best
            snapshot where the claim is one; None where there is none.
        tolerance: percentage points that were granted; None where the numbers were not compared.
    """

    claim: Claim
    word: str
    measured: float | None
    tolerance: float | None


def verdicts(records: Sequence[Record], claims: Iterable[Claim] | None = None) -> list[Verdict]:
    """Every claim about one cell, best comparable first, each with its verdict.

    The order looks at what was done and by whom it was printed, never at how the numbers compare.

    Args:
        records: the finished seeds of one method, model and scheme.
        claims: to judge; None: the published ones.
    """
    if not records:
        return []
    known = _by_cell() if claims is None else _index(claims)
    found = known.get(_cell(records[0]), ())
    judged = [judge(records, claim) for claim in found]
    return sorted(judged, key=lambda verdict: _rank(records[0], verdict))


def judge(records: Sequence[Record], claim: Claim) -> Verdict:
    """Judges one claim (design: other budget, other protocol, other weights; else by the numbers).

    Args:
        records: the finished seeds of one method, model and scheme.
        claim: about the same method, model, data set and bits.
    """
    first = records[0]
    best = claim.selection == "best"
    numbers = [known for record in records if (known := number(record, "oracle.top1" if best else "top1")) is not None]
    measured = statistics.fmean(numbers) if numbers else None
    if text(first, "budget") != PUBLISHED_BUDGET:
        return Verdict(claim, "other budget", measured, None)
    if not _same_protocol(first, claim):
        return Verdict(claim, "other protocol", measured, None)
    if not _same_weights(first, claim):
        return Verdict(claim, "other weights", measured, None)
    if measured is None:
        return Verdict(claim, NEEDS_ORACLE, None, None)
    granted = tolerance(numbers, number(first, "dataset.n"))
    gap = measured - claim.top1
    if abs(gap) <= granted + SLACK:
        return Verdict(claim, "reproduced", measured, granted)
    return Verdict(claim, "below" if gap < 0 else "above", measured, granted)


def tolerance(numbers: Sequence[float], images: float | None) -> float:
    """max(0.5, 2 sqrt(se^2 + sd^2)) in percentage points.

    Args:
        numbers: top-1 in percent, one for each seed; their sample standard deviation is sd (0 for one seed).
        images: images of the evaluation set; their binomial standard error at the mean is se (0 where not known).
    """
    error = standard_error(statistics.fmean(numbers), images) or 0.0
    deviation = statistics.stdev(numbers) if len(numbers) > 1 else 0.0
    return max(LEAST_TOLERANCE, 2 * math.sqrt(error**2 + deviation**2))


def _same_protocol(record: Record, claim: Claim) -> bool:
    """Whether scheme, quantizer, precision and the extent of the evaluation are those of the claim."""
    protocol = text(record, "scheme.protocol") or text(record, "scheme.label").partition("@")[2]
    quantizer = claim.implemented.partition("+")[2]
    return (
        protocol == claim.protocol
        and text(record, "quantizer").partition(":")[0] == quantizer
        and not text(record, "dataset.subset")
    )


def _same_weights(record: Record, claim: Claim) -> bool:
    """Whether full precision is within 0.1 of the source's; of any source's where this one does not print it."""
    mine = number(record, "fp_top1")
    if mine is None:
        return False
    printed = (claim.fp_top1,) if claim.fp_top1 is not None else _printed_precisions(claim.dataset, claim.model)
    return any(abs(mine - known) <= SAME_WEIGHTS + SLACK for known in printed)


@cache
def _printed_precisions(dataset: str, model: str) -> tuple[float, ...]:
    return tuple(
        claim.fp_top1
        for claim in published_claims()
        if claim.dataset == dataset and claim.model == model and claim.fp_top1 is not None
    )


def _cell(record: Record) -> tuple[str, str, str, str]:
    name = text(record, "model.name") or text(record, "model.ref") or text(record, "model")
    bits = f"w{number(record, 'scheme.w_bits') or 0:.0f}a{number(record, 'scheme.a_bits') or 0:.0f}"
    return text(record, "method"), dataset_key(text(record, "dataset.name")), model_key(name), bits


def _index(claims: Iterable[Claim]) -> dict[tuple[str, str, str, str], list[Claim]]:
    found: dict[tuple[str, str, str, str], list[Claim]] = {}
    for claim in claims:
        method = claim.implemented.partition("+")[0]
        if method:
            key = (method, dataset_key(claim.dataset), model_key(claim.model), claim.bits)
            found.setdefault(key, []).append(claim)
    return found


@cache
def _by_cell() -> dict[tuple[str, str, str, str], list[Claim]]:
    return _index(published_claims())


def _rank(record: Record, verdict: Verdict) -> tuple[object, ...]:
    claim = verdict.claim
    return not _same_protocol(record, claim), not _same_weights(record, claim), claim.distance
