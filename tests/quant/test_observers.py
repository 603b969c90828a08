"""Observers on sequences whose answer is known."""

from __future__ import annotations

import pytest
import torch

from dfqbench.api import UsageError
from dfqbench.quant.observers import make_observer
from dfqbench.quant.range_rules import check_range_rule, known_range_rules
from dfqbench.quant.scheme import GDFQ


def follow(rule: str, batches: list[torch.Tensor]) -> list[tuple[float, float]]:
    observer = make_observer(rule, GDFQ.activations, 4)
    ranges = []
    for batch in batches:
        low, high = observer(batch)
        ranges.append((low.item(), high.item()))
    return ranges


def test_minmax_starts_at_zero_on_both_sides() -> None:
    assert follow("minmax", [torch.tensor([2.0, 5.0]), torch.tensor([3.0, 4.0])])[-1] == (0.0, 5.0)
    assert follow("minmax", [torch.tensor([-2.0, -1.0])])[-1] == (-2.0, 0.0)


@pytest.mark.parametrize("values", [[1.0, 4.0, 2.0, 8.0], [3.0] * 30])
def test_plain_ema_weights_batches_by_age(values: list[float]) -> None:
    average = 0.0
    for value in values:
        average = 0.9 * average + 0.1 * value
    expected = average / (1 - 0.9 ** len(values))
    actual = follow("ema", [torch.tensor([-value, value]) for value in values])[-1]
    assert actual == pytest.approx((-expected, expected), rel=1e-5)


def test_official_ema_overshoots_and_washes_out() -> None:
    highs = [high for _, high in follow("ema-official", [torch.tensor([0.0, 1.0])] * 250)]
    assert highs[0] == pytest.approx(1.0, rel=1e-4)
    assert highs[1] == pytest.approx(5.26, rel=1e-2)
    assert max(highs) == pytest.approx(3945, rel=0.01)
    assert 19 <= highs.index(max(highs)) <= 22
    assert highs[149] == pytest.approx(1.01, abs=0.01)
    assert highs[-1] == pytest.approx(1.0, abs=1e-3)


def test_an_unknown_rule_names_the_valid_ones() -> None:
    with pytest.raises(
        UsageError, match=r"did you mean ema.*valid: bn, ema, ema-official, mean, minmax, mse, percentile, sigma"
    ):
        check_range_rule("emaa", 10)


@pytest.mark.parametrize("rule", known_range_rules())
def test_memory_order_does_not_matter(rule: str) -> None:
    batches = torch.randn(4, 2, 3, 5, 6, generator=torch.Generator().manual_seed(0))
    listed = [batch.contiguous(memory_format=torch.channels_last) for batch in batches]
    assert follow(rule, list(batches)) == follow(rule, listed)


def test_nan_in_a_batch_is_nan_in_the_range() -> None:
    assert torch.isnan(torch.tensor(follow("minmax", [torch.tensor([1.0, torch.nan])])[0])).all()
