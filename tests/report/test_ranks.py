"""Marks: only results that the paired test of `compare` tells apart are best or second."""

from __future__ import annotations

import csv
import io
import json
import time
from typing import Any

import numpy as np
import pytest
from tests.report.records import answered, changed, record, right, scheme
from tests.report.test_layouts import several

from dfqbench.report import parse_layout, render
from dfqbench.report.comparison.compare import compare
from dfqbench.report.comparison.paired import adjusted
from dfqbench.report.render import build_tables
from dfqbench.run.store.record import Record

LAYOUT = parse_layout(["method"], ["scheme"], ["top1", "drop", "synthesis"])


def column(counts: dict[str, int], **changes: Any) -> list[Record]:
    """Methods that give so many of the first of 540 images their labels: each is right wherever a worse one is."""
    return [answered(name, right(count), method=name, **changes) for name, count in counts.items()]


def marks(records: list[Record], metric: int = 0) -> dict[str, str]:
    """Marked methods of the first column."""
    [table] = build_tables(records, {}, LAYOUT)
    return {row.head[0].partition(" ")[0]: row.entries[metric].rank for row in table.rows if row.entries[metric].rank}


def statement(records: list[Record]) -> str:
    """What the caption says about methods that are not told apart."""
    [table] = build_tables(records, {}, LAYOUT)
    return "; ".join(line for line in table.caption if line.startswith(("not distinguished", "no best")))


def test_best_and_second_differ_from_all_below_them_and_from_noise() -> None:
    made = column({"a": 450, "b": 470, "c": 430, "noise": 400, "real": 530})
    assert marks(made) == marks(made, metric=1) == {"b": "best", "a": "second"}
    assert statement(made) == ""


@pytest.mark.parametrize(
    ("counts", "expected", "said"),
    [
        # Of nested answers 5 images give p 0.0625, and 8 images p 0.0078.
        ({"a": 450, "b": 455, "c": 400, "noise": 300}, {}, "not distinguished: b, a"),
        ({"a": 450, "b": 470, "c": 446, "noise": 300}, {"b": "best"}, "not distinguished: a, c (after the best)"),
        ({"a": 450, "b": 400, "noise": 446}, {}, "not distinguished: a, noise"),
        ({"a": 450, "b": 452, "noise": 448}, {}, "not distinguished: all, noise included"),
        ({"a": 450, "b": 400, "noise": 480}, {}, "not distinguished: a is below noise"),
        ({"a": 450, "noise": 448}, {}, "not distinguished: all, noise included"),
        ({"a": 450, "noise": 300}, {}, ""),
        ({"a": 450, "b": 440}, {"a": "best", "b": "second"}, ""),
    ],
)
def test_methods_that_are_not_told_apart_have_no_mark(
    counts: dict[str, int], expected: dict[str, str], said: str
) -> None:
    assert (marks(column(counts)), statement(column(counts))) == (expected, said)


def test_noise_under_the_same_quantizer_is_what_a_method_must_beat() -> None:
    distill: dict[str, Any] = {"quantizer": "distill", "params": {"quantizer": {"lr": 1}}}
    made = [
        *column({"a": 460, "noise": 300}),
        answered("b", right(480), method="b", **distill),
        answered("n", right(478), method="noise", label="noise+distill", **distill),
    ]
    assert (marks(made), statement(made)) == ({}, "not distinguished: b, noise+distill")
    other = changed(made[3], params={"quantizer": {"lr": 2}}, cell_id="n2", correct=answered("", right(300)).correct)
    assert marks([*made[:3], changed(other, top1=300 / 5.4)]) == {"b": "best", "a": "second"}


def test_seeds_are_paired_as_compare_pairs_them() -> None:
    random = np.random.default_rng(5)
    better, worse = ([random.random(540) < share for _ in range(3)] for share in (0.84, 0.79))
    seeds = [answered(f"a{s}", better[s], seed=s) for s in range(3)]
    others = [answered(f"b{s}", worse[s], seed=s, method="b") for s in range(3)]
    single, _, _, over_seeds = compare([*seeds, *others], "zeroq", "b")
    assert (single.differs, over_seeds.differs) == (False, True)
    assert marks([*seeds, *others]) == {"zeroq": "best", "b": "second"}
    assert marks([seeds[0], others[0]]) == {}
    # Seeds that only one of them has do not count.
    assert marks([*seeds, others[0]]) == {}


def test_records_without_comparable_answers_have_no_mark() -> None:
    bare = record("x", method="x", top1=50.0)
    why = "no best is marked without answers for each image, of the same seeds: "
    for other, names in ((bare, "x"), (answered("x", right(100), method="x", seed=7), "all")):
        made = [answered("a", right(400)), other]
        assert (marks(made), statement(made)) == ({}, why + names)
    assert statement([record("a"), bare]) == why + "all"
    damaged = changed(answered("x", right(100), method="x"), correct="!!")
    assert statement([answered("a", right(400)), damaged]) == why + "x"
    assert statement([record("a")]) == ""


def test_caption_names_the_column() -> None:
    made = column({"a": 450, "b": 451}) + [
        changed(entry, cell_id=f"{entry.cell_id}3", scheme=scheme(3)) for entry in column({"a": 450, "b": 440})
    ]
    assert statement(made) == "not distinguished: w4a4@gdfq: b, a"
    text = " ".join(render(made, "text").split())
    assert "not distinguished: w4a4@gdfq resnet8: b, a" in text


@pytest.mark.parametrize(
    ("fmt", "best", "second", "rule"),
    [
        ("text", "**86.30 ±1.48", " *82.59 ±1.63", "* **: best, *: second"),
        ("md", "**86.30 ±1.48**", "<u>82.59 ±1.63</u>", "* bold: best, underlined: second"),
        ("latex", r"\textbf{86.30 $\pm$1.48}", r"\underline{82.59 $\pm$1.63}", "Bold: best, underlined: second"),
        ("html", "<b>86.30 ±1.48</b>", "<u>82.59 ±1.63</u>", "<li>bold: best, underlined: second"),
    ],
)
def test_every_format_shows_marks_and_their_rule(fmt: Any, best: str, second: str, rule: str) -> None:
    text = render([entry for entry in several() if entry.scheme.w_bits == 4], fmt)
    assert all(shown in text for shown in (best, second, rule))
    tied = render(column({"a": 450, "b": 451}), fmt)
    assert "not distinguished: b, a" in tied.replace("Not", "not")
    assert "best, " not in tied


def test_csv_and_json_have_the_mark() -> None:
    made = [*column({"a": 450, "b": 470, "noise": 400}), *column({"a": 450, "b": 451}, model={"name": "other"})]
    made = [changed(entry, cell_id=str(at)) for at, entry in enumerate(made)]
    expected = ["second", "best", "", "not distinguished", "not distinguished"]
    assert [row["mark"] for row in csv.DictReader(io.StringIO(render(made, "csv")))] == expected
    assert [entry["mark"] for entry in json.loads(render(made, "json"))] == expected


def test_false_discovery_correction() -> None:
    ps = [0.01, 0.04, 0.03, 0.005, 0.9]
    assert adjusted(ps) == pytest.approx([0.025, 0.05, 0.05, 0.025, 0.9])
    assert adjusted([0.2]) == [0.2]
    assert adjusted([]) == []


def test_compare_corrects_over_places_and_seeds_apart() -> None:
    counts = {2: 404, 3: 409, 4: 409}  # p 0.125, 0.0039 and 0.0039 against 400
    made = [answered(f"a{bits}", right(count), scheme=scheme(bits)) for bits, count in counts.items()]
    made += [answered(f"b{bits}", right(400), method="b", scheme=scheme(bits)) for bits in counts]
    found = compare(made, "zeroq", "b")
    assert [row.q for row in found] == adjusted([row.paired.p for row in found])
    two = [entry for entry in made if entry.scheme.w_bits == 2]
    seeds = [*two, *(changed(entry, cell_id=f"{entry.cell_id}s", seed=1) for entry in two)]
    first, second, both = compare(seeds, "zeroq", "b")
    assert (both.q, first.q, second.q) == (both.paired.p, first.paired.p, second.paired.p)
    [alone] = compare(two, "zeroq", "b")
    assert alone.q == alone.paired.p


@pytest.mark.parametrize("images", [10_000, 50_000])
def test_a_hundred_cells_are_ranked_quickly(images: int) -> None:
    random = np.random.default_rng(0)
    made = [
        answered(f"{at}{bits}", random.random(images) < 0.7 + 0.015 * at, method=f"m{at}", scheme=scheme(bits))
        for at in range(20)
        for bits in (2, 3, 4, 5, 8)
    ]
    tables = build_tables(made[:2], {}, LAYOUT)
    begin = time.process_time()
    tables = build_tables(made, {}, LAYOUT)
    assert time.process_time() - begin < 1.0
    assert {entry.rank for row in tables[0].rows for entry in row.entries} >= {"best"}
