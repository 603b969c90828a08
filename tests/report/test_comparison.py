from __future__ import annotations

import base64
import json
import math
from typing import Any

import numpy as np
import pytest
from tests.report.records import answered, changed

from dfqbench.api import InputError, UsageError
from dfqbench.report.comparison.compare import compare, per_image
from dfqbench.report.comparison.paired import bootstrap_interval, compare_paired, sign_flip_test
from dfqbench.report.renderers.comparison import render_comparison


def flags(n: int, share: float, seed: int) -> Any:
    return np.random.default_rng(seed).random(n) < share


def mcnemar(b: int, c: int) -> float:
    return sign_flip_test(np.repeat([1, -1, 0], [b, c, 5]))[0]


def test_mcnemar_is_exact_for_few_differences_and_chi_squared_for_many() -> None:
    for b, c in ((0, 1), (3, 9), (10, 10), (0, 12), (100, 140), (400, 500)):
        tail = sum(math.comb(b + c, k) for k in range(min(b, c) + 1)) / 2 ** (b + c)
        assert mcnemar(b, c) == pytest.approx(min(1.0, 2 * tail))
    assert mcnemar(600, 700) == pytest.approx(math.erfc(math.sqrt(99**2 / 1300 / 2)))
    assert mcnemar(0, 0) == 1.0


def test_bootstrap_interval_matches_resampling() -> None:
    gaps = flags(500, 0.9, 0).astype(float) - flags(500, 0.8, 1).astype(float)
    random = np.random.default_rng(7)
    means = [100 * random.choice(gaps, len(gaps)).mean() for _ in range(4000)]
    assert bootstrap_interval(gaps) == pytest.approx(np.percentile(means, [2.5, 97.5]), abs=0.3)
    assert bootstrap_interval(gaps) == bootstrap_interval(gaps)
    assert bootstrap_interval(np.zeros(9)) == (0.0, 0.0)


def test_compare_paired_counts_images() -> None:
    found = compare_paired([np.array([1, 1, 0, 0, 1], bool)], [np.array([1, 0, 1, 0, 0], bool)])
    assert (found.first, found.second, found.only_first, found.only_second) == (60.0, 40.0, 2, 1)
    assert (found.p, found.exact) == (1.0, True)
    with pytest.raises(ValueError, match="cannot be paired"):
        compare_paired([np.ones(3, bool)], [np.ones(4, bool)])


def test_compare_methods_by_seed_and_over_seeds() -> None:
    good = [answered(f"a{s}", flags(1000, 0.95, s), seed=s) for s in range(3)]
    poor = [answered(f"b{s}", flags(1000, 0.80, 9 + s), seed=s, method="poor") for s in (2, 1, 5)]
    found = compare([*good, *poor], "zeroq", "poor")
    assert [entry.seed for entry in found] == ["1", "2", "all"]
    assert found[0].paired.p < 1e-6
    assert found[2].paired.p < found[0].paired.p
    # The mean over seeds is steadier than one seed.
    assert found[2].paired.high - found[2].paired.low < found[0].paired.high - found[0].paired.low
    text = render_comparison(found, "zeroq", "poor")
    assert "A: zeroq, B: poor, digits, digits:resnet8, w4a4@gdfq, short" in text
    assert text.count("A is better") == 3
    assert "verdict: q < 0.05, and nothing else" in text
    assert json.loads(render_comparison(found, "zeroq", "poor", "json"))[0]["only_first"] == found[0].paired.only_first
    assert "| A is better" in render_comparison(found, "zeroq", "poor", "md")


def test_equal_students_are_not_significant() -> None:
    same = flags(100, 0.5, 0)
    [found] = compare([answered("a", same), answered("b", same, method="noise")], "zeroq", "noise (control)")
    assert (found.paired.p, found.paired.low, found.paired.high, found.differs) == (1.0, 0.0, 0.0, False)


def test_compare_takes_names_with_their_mark() -> None:
    made = [answered("a", flags(100, 0.5, 0), fidelity="paper"), answered("b", flags(100, 0.5, 0), method="noise")]
    assert len(compare(made, "zeroq‡", "noise")) == 1


def test_compare_cells_by_id() -> None:
    records = [answered("aaaa1", flags(100, 0.5, 0)), answered("bbbb2", flags(100, 0.9, 1), seed=4)]
    [found] = compare(records, "aaaa", "bbbb")
    assert (found.place[2], found.seed) == ("w4a4@gdfq", "0 / 4")


def test_different_images_are_not_paired() -> None:
    one, other = answered("aaaa1", flags(100, 0.5, 0)), answered("bbbb2", flags(100, 0.9, 1), method="x")
    elsewhere = changed(other, dataset=other.dataset.model_dump() | {"sha256": "e"})
    with pytest.raises(UsageError, match="other images"):
        compare([one, elsewhere], "aaaa", "bbbb")
    with pytest.raises(UsageError, match="share no model, scheme, budget and seed on the same images"):
        compare([one, elsewhere], "zeroq", "x")


@pytest.mark.parametrize(
    ("bits", "message"),
    [
        (None, "no answer for each image"),
        ("", "no answer for each image"),
        ("!!", "do not fit"),
        ("AAAA", "do not fit"),
        (base64.b64encode(b"\xff" * 13).decode(), "do not fit"),
    ],
)
def test_damaged_answers_are_input_errors(bits: Any, message: str) -> None:
    broken = changed(answered("a", flags(100, 0.5, 0)), correct=bits)
    with pytest.raises(InputError, match=message):
        per_image(broken)


def test_unknown_names_are_usage_errors() -> None:
    records = [answered("a", flags(100, 0.5, 0)), answered("b", flags(100, 0.5, 0), method="noise")]
    with pytest.raises(UsageError, match="unknown method or cell 'zerq'; did you mean zeroq"):
        compare(records, "zerq", "noise")
    with pytest.raises(UsageError, match="unknown format"):
        render_comparison([], "a", "b", "xml")  # type: ignore[arg-type]
