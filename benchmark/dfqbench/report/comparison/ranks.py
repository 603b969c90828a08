"""Ranks: the best and second best of some methods, as far as the paired test tells them from the others."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from dfqbench.report.comparison.compare import answers_by_seed
from dfqbench.report.comparison.paired import LEVEL, adjusted, paired_test
from dfqbench.report.record_access import NOISE, competes, finished
from dfqbench.run.store.record import Record

Place = tuple[int, int]  # row and column
BEST, SECOND, TIED = "best", "second", "not distinguished"


@dataclass(frozen=True, slots=True)
class Ranking:
    """What the paired test says about the methods of one column."""

    ranks: Mapping[Place, str]  # `best`, `second`, or `not distinguished` of methods that may be the best
    tied: tuple[Place, ...] = ()  # the highest mean, and what the test does not tell from it; may end with noise
    second_tied: tuple[Place, ...] = ()  # the same of the second place, where the first is clear
    like_noise: bool = False  # whether no method differs from noise
    below: tuple[Place, Place] | None = None  # the highest mean, and noise or a method that is better by the test
    untested: tuple[Place, ...] = ()  # places without answers, or two without a seed in common


class _UntestedError(Exception):
    """Two places have no answers to the same images with the same seed."""


class Ranker:
    """Ranks the methods of one column after the other; the answers of each cell are unpacked once."""

    def __init__(self, places: Mapping[Place, Sequence[Record]]) -> None:
        self._places = {place: good for place, records in places.items() if (good := list(filter(finished, records)))}
        self._answers = cache(lambda place: answers_by_seed(self._places[place]))
        self._test = cache(self._tested)

    def rank(self, group: Sequence[Place]) -> Ranking:
        """Rank the competitors among places that differ in the method alone.

        A method has a rank only if the test shows it to be better than each method below it, and than noise under its
        own quantizer. The p of the tests for one rank are corrected for their number, as `compare` does.
        """
        known = [place for place in group if place in self._places]
        rivals = [place for place in known if any(map(competes, self._places[place]))]
        order = sorted(rivals, key=lambda place: -statistics.fmean(r.top1 or 0.0 for r in self._places[place]))
        noise = {place: self._noise_for(place, known) for place in order}
        compared = [place for place in dict.fromkeys((*order, *noise.values())) if place]
        missing = tuple(place for place in compared if not self._answers(place))
        if not order or len(compared) < 2 or missing:
            return Ranking({}, untested=missing if len(compared) > 1 else ())
        try:
            pairs = [(place, control) for place, control in noise.items() if control]
            if pairs and not any(self._gaps(pairs)):
                return Ranking(dict.fromkeys(order, TIED), like_noise=True)
            first = self._first(order, noise)
            if len(order) < 2 or first.tied or first.below:
                return first
            second = self._first(order[1:], noise)
        except _UntestedError as error:
            return Ranking({}, untested=error.args)
        ranks = {order[0]: BEST} | ({} if second.tied or second.below else {order[1]: SECOND})
        return Ranking(ranks, second_tied=second.tied, below=second.below)

    def _first(self, order: Sequence[Place], noise: Mapping[Place, Place | None]) -> Ranking:
        """Compare the first of some methods with the others and with noise."""
        first, *others = order
        opponents = [*others, *filter(None, [noise[first]])]
        gaps = dict(zip(opponents, self._gaps([(first, other) for other in opponents]), strict=True))
        above = [other for other in opponents if gaps[other] < 0]
        same = [other for other in opponents if not gaps[other]]
        tied = (first, *same) if same else ()
        return Ranking(
            dict.fromkeys((place for place in tied if place in order), TIED),
            tied,
            below=(first, above[0]) if above else None,
        )

    def _gaps(self, pairs: Sequence[tuple[Place, Place]]) -> list[float]:
        """Return first minus second of each pair, 0 where the corrected test does not tell them apart."""
        tests = [self._test(*pair) for pair in pairs]
        qs = adjusted([p for _, p in tests])
        return [gap if q < LEVEL else 0.0 for (gap, _), q in zip(tests, qs, strict=True)]

    def _tested(self, first: Place, second: Place) -> tuple[float, float]:
        """Return the difference of two places and its p, over the seeds and images that they share."""
        a, b = self._answers(first), self._answers(second)
        shared = [key for key in a if key in b]
        if not shared:
            raise _UntestedError(first, second)
        return paired_test([a[key] for key in shared], [b[key] for key in shared])

    def _noise_for(self, place: Place, group: Sequence[Place]) -> Place | None:
        """Return noise under the quantizer of a place, if possible with the same parameters; else any noise."""
        record = self._places[place][0]
        controls = [other for other in group if self._places[other][0].method == NOISE]
        same = {other: self._places[other][0] for other in controls}
        return max(
            controls,
            key=lambda other: (
                same[other].quantizer == record.quantizer,
                same[other].params.get("quantizer") == record.params.get("quantizer"),
            ),
            default=None,
        )
