"""Observers that may leave out the largest values, against direct computations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dfqbench.api import ModelCard, UsageError
from dfqbench.quant import Student, parse_scheme, prepare
from dfqbench.quant.fake_quantize import activation_qparams, fake_quantize_activation
from dfqbench.quant.observers import make_observer
from dfqbench.quant.range_rules import check_range_rule, split_range_rule
from dfqbench.quant.scheme import DEPLOY, GDFQ, Protocol

CLIPPING = ("mean", "percentile:99", "mse", "sigma:2")


def values(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def batch_range(rule: str, *batches: Tensor, bits: int = 4, protocol: Protocol = GDFQ) -> tuple[float, float]:
    observer = make_observer(rule, protocol.activations, bits)
    for batch in batches:
        low, high = observer(batch)
    return float(low), float(high)


def test_mean_is_that_of_the_images_extremes() -> None:
    x = values(8, 3, 5, 5)
    expected = np.mean([image.min() for image in x.numpy()]), np.mean([image.max() for image in x.numpy()])
    assert batch_range("mean", x) == pytest.approx(expected)
    assert batch_range("mean", x[:3], x[3:]) == pytest.approx(expected)


@pytest.mark.parametrize("percent", [50, 90, 99.9, 99.999, 100])
def test_percentiles_are_those_of_numpy(percent: float) -> None:
    x = values(4, 3, 7, 9)
    expected = np.percentile(x.numpy(), [100 - percent, percent])
    expected = min(expected[0], 0), max(expected[1], 0)
    assert batch_range(f"percentile:{percent}", x) == pytest.approx(expected, abs=1e-5)


def test_percentile_of_a_single_value_and_of_many() -> None:
    assert batch_range("percentile", torch.tensor([[3.0]])) == (0.0, 3.0)
    ramp = torch.arange(20_000_000, dtype=torch.float32).view(1, -1)  # torch.quantile takes 16 million
    assert batch_range("percentile:75", ramp)[1] == pytest.approx(15_000_000, rel=1e-5)


@pytest.mark.parametrize("protocol", [GDFQ, DEPLOY])
@pytest.mark.parametrize("bits", [2, 4])
def test_mse_range_has_the_least_error_of_all_ratios(protocol: Protocol, bits: int) -> None:
    x = values(4, 3, 8, 8) ** 3
    operand = protocol.activations
    errors = {}
    for percent in range(100, 0, -1):
        low, high = x.min() * percent / 100, x.max() * percent / 100
        rounded = fake_quantize_activation(x, *activation_qparams(low, high, operand, bits), operand, bits)
        errors[percent] = float((rounded - x).square().mean())
    best = min(errors, key=errors.__getitem__)
    assert best < 100
    expected = best / 100 * float(x.min()), best / 100 * float(x.max())
    assert batch_range("mse", x, bits=bits, protocol=protocol) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("bits", "multiplier"), [(2, 12), (4, 12), (5, 12), (6, 14), (7, 14), (8, 25)])
def test_sigma_is_a_multiple_of_the_deviation_of_positive_values(bits: int, multiplier: float) -> None:
    x = values(4, 3, 8, 8).relu()
    high = multiplier * float(x[x > 0].std())
    expected = min(high, float(x.max())) if bits < 6 else high
    assert batch_range("sigma", x, bits=bits) == pytest.approx((0.0, expected), rel=1e-5)
    assert batch_range("sigma:1.5", x, bits=bits)[1] == pytest.approx(1.5 * float(x[x > 0].std()), rel=1e-5)


def test_sigma_is_symmetric_for_negative_values() -> None:
    x = values(4, 3, 8, 8)
    alpha = 25 / 1.25 * float(x.std())
    assert batch_range("sigma", x, bits=8) == pytest.approx((-alpha, alpha), rel=1e-5)
    largest = float(x.abs().max())
    assert batch_range("sigma", x, bits=4) == pytest.approx((-largest, largest), rel=1e-5)


@pytest.mark.parametrize("rule", CLIPPING)
def test_range_over_batches_is_the_mean_weighted_by_images(rule: str) -> None:
    batches = [values(6, 3, 8, 8), values(2, 3, 8, 8, seed=1) * 5]
    first, second = (batch_range(rule, batch) for batch in batches)
    expected = tuple((6 * a + 2 * b) / 8 for a, b in zip(first, second, strict=True))
    assert batch_range(rule, *batches) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("rule", [*CLIPPING, "percentile", "sigma"])
def test_ranges_of_unusual_values(rule: str) -> None:
    assert batch_range(rule, torch.zeros(2, 3, 4, 4)) == (0.0, 0.0)
    low, high = batch_range(rule, torch.full((2, 3, 4, 4), 2.0))
    assert low == 0.0
    assert 0.0 <= high <= 2.0
    assert batch_range(rule, torch.full((2, 3, 4, 4), -2.0))[0] <= 0.0
    assert batch_range(rule, values(4, 3, 8, 8).bfloat16())[1] > 0
    assert np.isnan(batch_range(rule, torch.tensor([[1.0, torch.nan]]))).any()


@pytest.mark.parametrize("rule", CLIPPING)
def test_ranges_carry_no_gradient(rule: str) -> None:
    low, high = make_observer(rule, GDFQ.activations, 4)(values(4, 3, 8, 8).requires_grad_())
    assert not low.requires_grad
    assert not high.requires_grad


def small_student() -> Student:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))
    return prepare(network.eval(), parse_scheme("w4a4@gdfq"), ModelCard((3, 8, 8), (0.5,) * 3, (0.5,) * 3, 5))


@pytest.mark.parametrize("rule", ["percentile:99.9", "sigma:2.5"])
def test_rules_with_a_number_resume_from_a_state(rule: str) -> None:
    torch.manual_seed(0)
    student, images = small_student(), values(8, 3, 8, 8)
    with torch.no_grad(), student.observing(rule):
        student(images[:4])
    resumed = small_student()
    resumed.load_state_dict(student.state_dict())
    for member in (student, resumed):
        with torch.no_grad(), member.observing(rule):
            member(images[4:] * 3)
    highs = [member.activation_quantizers()[0].high for member in (student, resumed)]
    assert torch.equal(*highs)
    assert student.range_steps == resumed.range_steps == 2


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (
            "percentile:100.5",
            "'100.5' is no number of range rule 'percentile'; write percentile:NUMBER, from 50 to 100",
        ),
        ("percentile:49", "from 50 to 100"),
        ("percentile:high", "'high' is no number"),
        ("percentile:nan", "'nan' is no number"),
        ("sigma:0", "write sigma:NUMBER, above 0, at most 1000"),
        ("bn:-1", "write bn:NUMBER"),
        ("minmax:3", "range rule 'minmax' has no number, got 'minmax:3'; write 'minmax'"),
        ("percentil:99", "did you mean percentile"),
    ],
)
def test_a_wrong_number_is_refused(rule: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        split_range_rule(rule)


def test_bn_is_refused_where_ranges_follow_batches() -> None:
    assert split_range_rule("bn:4") == ("bn", 4.0)
    check_range_rule("bn", steps=1, needs_batches=False)
    with pytest.raises(UsageError, match="'bn' follows no batches"):
        check_range_rule("bn")
    with pytest.raises(UsageError, match="'bn' follows no batches"):
        make_observer("bn", GDFQ.activations, 4)
