"""Two methods side by side: every place where both were run, paired image by image."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from dfqbench.api.errors import UsageError, unknown_name
from dfqbench.report.correct import correctness, evaluated_on
from dfqbench.report.escape import markdown
from dfqbench.report.labels import labels, model_name, scheme_label
from dfqbench.report.paired import CONFIDENCE, LEVEL, RESAMPLES, Paired, compare_paired
from dfqbench.report.status import finished
from dfqbench.report.values import ABSENT, latest, newest_of
from dfqbench.run.store.record import Record

ComparisonFormat = Literal["text", "md", "json"]
COMPARISON_FORMATS: tuple[str, ...] = get_args(ComparisonFormat)
ALL_SEEDS = "all"
WIDTH = 100
_HEADERS = (
    "target",
    "model",
    "scheme",
    "budget",
    "seed",
    "A",
    "B",
    "A - B",
    "95 % interval",
    "only A",
    "only B",
    "p",
    "",
)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two students, or the seeds of two, on the same images.

    Attributes:
        place: target, model, scheme and budget.
        seed: the seed; two with a slash where they differ; `all` over several.
        paired: what their answers say.
    """

    place: tuple[str, str, str, str]
    seed: str
    paired: Paired


def compare(records: Sequence[Record], first: str, second: str) -> list[Comparison]:
    """Compares two cells, or two methods wherever both were run with the same seeds.

    Args:
        records: of one run or more.
        first: a method's label, or a cell's id or a unique beginning of one.
        second: the same.

    Raises:
        UsageError: nothing has that name, or there is nothing to pair.
        InputError: a record has no answers for each image.
    """
    known = [record for record in latest(records) if finished(record)]
    names = labels(known)
    one, other = (_chosen(known, names, wanted) for wanted in (first, second))
    if one[0] is None and other[0] is None:
        return [_cells(one[1][0], other[1][0], first, second)]
    left, right = _by_place(one[1]), _by_place(other[1])
    found: list[Comparison] = []
    for place in sorted(set(left) & set(right), key=str):
        found += _seeds(left[place], right[place])
    if not found:
        raise UsageError(
            f"'{first}' and '{second}' share no model, scheme, budget and seed on the same images",
            "`dfqbench table` shows what was run",
        )
    return found


def _chosen(records: Sequence[Record], names: dict[int, str], wanted: str) -> tuple[str | None, list[Record]]:
    """The method's label (None for a cell) and its records."""
    plain = {name.partition(" (")[0] if name.endswith(")") else name for name in names.values()}
    mine = [record for record in records if wanted in {names[id(record)], names[id(record)].partition(" (")[0]}]
    if mine:
        return wanted, mine
    cells = [record for record in records if len(wanted) >= 4 and record.cell_id.startswith(wanted)]
    if len({record.cell_id for record in cells}) > 1:
        raise UsageError(f"several cells begin with '{wanted}'", "write more digits")
    if not cells:
        raise unknown_name("method or cell", wanted, plain)
    return None, cells


def _cells(one: Record, other: Record, first: str, second: str) -> Comparison:
    if evaluated_on(one) != evaluated_on(other):
        raise UsageError(
            f"cells {first} and {second} were evaluated on other images", "compare cells of the same evaluation set"
        )
    names = [
        a if a == b else f"{a} / {b}"
        for a, b in zip((*_place(one), str(one.seed)), (*_place(other), str(other.seed)), strict=True)
    ]
    paired = compare_paired([correctness(one)], [correctness(other)])
    return Comparison((names[0], names[1], names[2], names[3]), names[4], paired)


def _place(record: Record) -> tuple[str, str, str, str]:
    return record.target, model_name(record), scheme_label(record), record.budget


def _by_place(records: Sequence[Record]) -> dict[tuple[object, ...], list[Record]]:
    """Records by place and images, one for each seed, in the order of seeds."""
    found: dict[tuple[object, ...], list[Record]] = {}
    for record in newest_of(records, key=lambda r: (_place(r), r.dataset.sha256, r.dataset.n, r.seed)):
        found.setdefault((_place(record), *evaluated_on(record), record.precision), []).append(record)
    return {place: sorted(group, key=lambda r: r.seed or 0) for place, group in found.items()}


def _seeds(left: Sequence[Record], right: Sequence[Record]) -> list[Comparison]:
    mine, theirs = ({str(record.seed): record for record in side} for side in (left, right))
    shared = [seed for seed in mine if seed in theirs]
    one, other = ([correctness(side[seed]) for seed in shared] for side in (mine, theirs))
    where = _place(left[0])
    found = [Comparison(where, seed, compare_paired([a], [b])) for seed, a, b in zip(shared, one, other, strict=True)]
    return [*found, Comparison(where, ALL_SEEDS, compare_paired(one, other))] if len(found) > 1 else found


def render_comparison(found: Sequence[Comparison], first: str, second: str, fmt: ComparisonFormat = "text") -> str:
    """Renders comparisons as `text`, `md` or `json`.

    Raises:
        UsageError: the format is unknown.
    """
    if fmt not in COMPARISON_FORMATS:
        raise unknown_name("format", fmt, COMPARISON_FORMATS)
    if fmt == "json":
        return json.dumps([_plain(entry, first, second) for entry in found], indent=2) + "\n"
    from tabulate import tabulate

    rows = [[*entry.place, entry.seed, *_numbers(entry.paired)] for entry in found]
    # A column that says the same in every row goes into the caption.
    constant = [place for place in range(4) if len(found) > 1 and len({row[place] for row in rows}) == 1]
    kept = [place for place in range(len(_HEADERS)) if place not in constant]
    body = [[row[place] for place in kept] for row in rows]
    if fmt == "md":
        body = [[markdown(field) for field in row] for row in body]
    aligned = ["left" if place < 4 or place == len(_HEADERS) - 1 else "right" for place in kept]
    headers = [_HEADERS[place] for place in kept]
    style = "pipe" if fmt == "md" else "simple"
    table = tabulate(body, headers, tablefmt=style, colalign=aligned, disable_numparse=True)
    title = f"A: {first}, B: {second}" + "".join(f", {rows[0][place]}" for place in constant)
    lines = [
        title if fmt == "text" else markdown(title),
        "",
        "\n".join(line.rstrip() for line in table.splitlines()),
        "",
    ]
    lines += [textwrap.fill(line, WIDTH, initial_indent="* ", subsequent_indent="  ") for line in _caption(found)]
    return "\n".join(lines) + "\n"


def _numbers(paired: Paired) -> list[str]:
    p = ABSENT if paired.p is None else "< 0.0001" if paired.p < 1e-4 else f"{paired.p:.4f}"
    word = ("A is better" if paired.difference > 0 else "B is better") if paired.differs else "not significant"
    counts = [
        f"{count:.0f}" if count == round(count) else f"{count:.1f}" for count in (paired.only_first, paired.only_second)
    ]
    interval = f"{paired.low:+.2f} to {paired.high:+.2f}"
    return [f"{paired.first:.2f}", f"{paired.second:.2f}", f"{paired.difference:+.2f}", interval, *counts, p, word]


def _caption(found: Sequence[Comparison]) -> list[str]:
    images = sorted({entry.paired.n for entry in found})
    exact = {entry.paired.exact for entry in found if entry.paired.p is not None}
    kind = (
        "exact"
        if exact == {True}
        else "chi-squared"
        if exact == {False}
        else "exact where few differ, else chi-squared"
    )
    lines = [
        f"top-1 in percent, paired over {', '.join(f'{n:,}' for n in images)} images",
        f"p: McNemar's test, two-sided, {kind}",
        f"{100 * CONFIDENCE:.0f} % interval of A - B: percentile bootstrap over images, {RESAMPLES:,} resamples",
        f"better: p < {LEVEL}, for all seeds together an interval without 0",
    ]
    if any(entry.seed == ALL_SEEDS for entry in found):
        lines.append("all: answers averaged over seeds, images resampled; it speaks of these seeds, not of others")
    if sum(entry.paired.p is not None for entry in found) > 1:
        lines.append("several tests: p is not corrected for their number")
    return lines


def _plain(entry: Comparison, first: str, second: str) -> dict[str, Any]:
    names = dict(zip(("target", "model", "scheme", "budget"), entry.place, strict=True))
    numbers = asdict(entry.paired) | {"difference": entry.paired.difference, "differs": entry.paired.differs}
    return {"A": first, "B": second, **names, "seed": entry.seed, **numbers}
