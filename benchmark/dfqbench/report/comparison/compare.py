"""Two methods side by side: every place where both were run, paired image by image."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dfqbench.api.errors import InputError, UsageError, unknown_name
from dfqbench.report.comparison.paired import LEVEL, Paired, adjusted, compare_paired
from dfqbench.report.record_access import finished, latest, model_name, newest_of, scheme_label
from dfqbench.report.tables.labels import FIDELITY_MARKS, method_labels
from dfqbench.run.evaluate.accuracy import unpacked
from dfqbench.run.store.record import Record

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ALL_SEEDS = "all"
Answers = Sequence["NDArray[np.bool_]"]  # for each seed


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two students, or the seeds of two, on the same images."""

    place: tuple[str, ...]  # target, model, scheme and budget
    seed: str  # two with a slash where they differ; `all` over several
    paired: Paired
    q: float  # p, corrected where several are compared

    @property
    def differs(self) -> bool:
        """Whether the difference is more than chance: q decides, the interval is an estimate."""
        return self.q < LEVEL


def compare(records: Sequence[Record], first: str, second: str) -> list[Comparison]:
    """Compare two cells, or two methods wherever both were run with the same seeds.

    Args:
        records: of one run or more.
        first: a method's label, or a cell's id or a unique beginning of one.
        second: the same.

    Raises:
        UsageError: nothing has that name, or there is nothing to pair.
        InputError: a record has no answers for each image.
    """
    known = [record for record in latest(records) if finished(record)]
    labels = method_labels(known)
    (first_is_cell, a), (second_is_cell, b) = (_chosen(known, labels, name) for name in (first, second))
    if first_is_cell and second_is_cell:
        return [_compare_cells(a[0], b[0], first, second)]
    left, right = _by_place(a), _by_place(b)
    places = [_compare_seeds(left[place], right[place]) for place in sorted(set(left) & set(right), key=str)]
    if not any(places):
        raise UsageError(
            f"'{first}' and '{second}' share no model, scheme, budget and seed on the same images",
            "`dfqbench table` shows what was run",
        )
    return _corrected(list(filter(None, places)))


def _corrected(places: Sequence[Sequence[Comparison]]) -> list[Comparison]:
    """Return all comparisons with q: of the last of each place over places, of its single seeds among themselves."""
    over_places = zip(places, adjusted([rows[-1].paired.p for rows in places]), strict=True)
    singles = iter(adjusted([row.paired.p for rows in places for row in rows[:-1]]))
    return [replace(row, q=q if row is rows[-1] else next(singles)) for rows, q in over_places for row in rows]


def per_image(record: Record) -> NDArray[np.bool_]:
    """Return whether the student gave each image its label: bool (n,), in the order of the evaluation set.

    Raises:
        InputError: the record has no bits, or they do not fit its number of images and its top-1.
    """
    cell, images, top1 = record.cell_id or "unknown", record.dataset.n, record.top1
    if not record.correct or not images or top1 is None:
        raise InputError(f"cell {cell} has no answer for each image", "run it again")
    try:
        flags = unpacked(record.correct, images)
    except ValueError:
        flags = None
    if flags is None or abs(100 * flags.mean() - top1) > 1e-6:
        raise InputError(f"the answers for each image of cell {cell} do not fit its top-1", "run it again")
    return flags


def answers_by_seed(records: Iterable[Record]) -> dict[tuple[object, ...], NDArray[np.bool_]]:
    """Return the answers of records of one method, by seed and evaluation set; records without answers are left out."""
    answers = {}
    for record in records:
        with suppress(InputError):
            answers[record.seed, *_evaluated_on(record)] = per_image(record)
    return answers


def _chosen(records: Sequence[Record], labels: dict[int, str], name: str) -> tuple[bool, list[Record]]:
    """Return whether the name is a cell's, and the records of the method or cell."""
    name = name.rstrip("".join(FIDELITY_MARKS.values()))
    of_method = [r for r in records if name in {labels[id(r)], labels[id(r)].partition(" (")[0]}]
    if of_method:
        return False, of_method
    of_cell = [record for record in records if len(name) >= 4 and record.cell_id.startswith(name)]
    if len({record.cell_id for record in of_cell}) > 1:
        raise UsageError(f"several cells begin with '{name}'", "write more digits")
    if not of_cell:
        plain = {label.partition(" (")[0] if label.endswith(")") else label for label in labels.values()}
        raise unknown_name("method or cell", name, plain)
    return True, of_cell


def _compare_cells(a: Record, b: Record, first: str, second: str) -> Comparison:
    if _evaluated_on(a) != _evaluated_on(b):
        raise UsageError(
            f"cells {first} and {second} were evaluated on other images", "compare cells of the same evaluation set"
        )
    pairs = zip((*_place(a), str(a.seed)), (*_place(b), str(b.seed)), strict=True)
    *place, seed = (left if left == right else f"{left} / {right}" for left, right in pairs)
    return _comparison(tuple(place), seed, [per_image(a)], [per_image(b)])


def _comparison(place: tuple[str, ...], seed: str, a: Answers, b: Answers) -> Comparison:
    paired = compare_paired(a, b)
    return Comparison(place, seed, paired, paired.p)


def _place(record: Record) -> tuple[str, ...]:
    return record.target, model_name(record), scheme_label(record), record.budget


def _evaluated_on(record: Record) -> tuple[object, ...]:
    """Return what is equal for two records that were evaluated on the same images in the same order."""
    data = record.dataset
    return data.name, data.sha256, data.n, data.subset


def _by_place(records: Sequence[Record]) -> dict[tuple[object, ...], dict[str, Record]]:
    """Return records by place and images, then by seed, in the order of seeds."""
    places: dict[tuple[object, ...], dict[str, Record]] = defaultdict(dict)
    newest = newest_of(records, key=lambda r: (_place(r), r.dataset.sha256, r.dataset.n, r.seed))
    for record in sorted(newest, key=lambda record: record.seed or 0):
        places[_place(record), *_evaluated_on(record), record.precision][str(record.seed)] = record
    return places


def _compare_seeds(left: dict[str, Record], right: dict[str, Record]) -> list[Comparison]:
    shared = [seed for seed in left if seed in right]
    a, b = ([per_image(side[seed]) for seed in shared] for side in (left, right))
    place = _place(next(iter(left.values())))
    by_seed = [_comparison(place, seed, [x], [y]) for seed, x, y in zip(shared, a, b, strict=True)]
    return [*by_seed, _comparison(place, ALL_SEEDS, a, b)] if len(by_seed) > 1 else by_seed
