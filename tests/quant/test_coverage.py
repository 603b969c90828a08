"""Coverage must notice what is off its quantization levels: each test makes a fault that must be found."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dfqbench.api import ModelCard, PluginError
from dfqbench.quant import FakeQuantize, Student, parse_scheme, prepare
from dfqbench.quant.coverage import distinct_levels, is_quantized, measure_coverage, most_levels_per_channel
from dfqbench.quant.fake_quantize_modules import FakeQuantizeWeight
from dfqbench.quantizers.residual_expansion import expand

CARD = ModelCard((3, 8, 8), (0.5,) * 3, (0.5,) * 3, 5)
IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(3))


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(216, 5)
    ).eval()


def student(label: str) -> Student:
    made = prepare(network(), parse_scheme(label), CARD)
    with torch.no_grad(), made.observing("minmax"):
        made(IMAGES)
    return made


def test_multiply_accumulates_are_counted_by_hand() -> None:
    coverage = measure_coverage(student("w4a4"), IMAGES)
    first, second, head = 6 * 64 * 27, 6 * 36 * 54, 216 * 5
    assert coverage.macs_total == first + second + head
    assert coverage.macs_quantized == second + head
    assert coverage.float_layers == ["0: input"]


def test_float_weight_is_a_violation() -> None:
    made = student("w4a4")
    layer = made.network.get_submodule("2")
    torch.nn.utils.parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
    coverage = measure_coverage(made, IMAGES)
    assert coverage.violations == ["weight 2"]
    assert not coverage.levels_ok
    assert "2: weight" in coverage.float_layers


@pytest.mark.parametrize("levels", ["float", "too many"])
def test_activation_off_its_levels_is_a_violation(levels: str) -> None:
    made = student("w4a4")
    quantizer = made.activation_quantizers()[0]
    wide = FakeQuantize(quantizer.name, quantizer.operand, 8)
    wide.set_range(quantizer.low, quantizer.high)
    quantizer.forward = wide.forward if levels == "too many" else lambda x: x  # type: ignore[method-assign]
    coverage = measure_coverage(made, IMAGES)
    assert coverage.violations == [f"activation {quantizer.name}"]
    assert "2: input" in coverage.float_layers


def test_set_ranges_are_no_violation() -> None:
    made = prepare(network(), parse_scheme("w4a4@gdfq"), CARD)
    for quantizer in made.activation_quantizers():
        quantizer.set_range(0.0, 2.5)
    assert measure_coverage(made, IMAGES).violations == []


@pytest.mark.parametrize(
    ("low", "high", "message"),
    [
        (1.0, 0.5, "low 1.0 is above high 0.5; give the lower end first"),
        (0.0, math.nan, "0.0 to nan is not finite"),
        (-1e300, 1.0, "-inf to 1.0 is not finite"),
        (torch.zeros(3), torch.ones(3), r"shapes \(3,\) and \(3,\); activations have one range a tensor"),
    ],
)
def test_wrong_range_is_refused_and_changes_nothing(low: Any, high: Any, message: str) -> None:
    quantizer = prepare(network(), parse_scheme("w4a4@gdfq"), CARD).activation_quantizers()[0]
    with pytest.raises(PluginError, match=rf"set_range of activation '{quantizer.name}': {message}"):
        quantizer.set_range(low, high)
    assert (int(quantizer.batches), float(quantizer.high)) == (0, 0.0)


def test_set_ranges_survive_saving_and_are_where_an_observer_begins(tmp_path: Path) -> None:
    made = student("w4a4")
    for quantizer in made.activation_quantizers():
        quantizer.set_range(torch.tensor([0.0]), 50)
    assert not [name for name in made.state_dict() if "rule:" in name]
    fresh = prepare(network(), made.scheme, CARD)
    fresh.load_state_dict(made.finished_state())
    assert measure_coverage(fresh, IMAGES).violations == []
    assert torch.equal(fresh(IMAGES), made(IMAGES))
    with torch.no_grad(), made.observing("minmax"):
        made(IMAGES)
    assert [float(quantizer.high) for quantizer in made.activation_quantizers()] == [50.0, 50.0]


def test_range_without_batch_is_a_violation() -> None:
    made = prepare(network(), parse_scheme("w4a4@deploy"), CARD)
    violations = measure_coverage(made, IMAGES).violations
    assert len(violations) == 3
    assert all("its range saw no batch" in violation for violation in violations)


def test_nothing_quantized_covers_nothing() -> None:
    coverage = measure_coverage(student("w32a32"), IMAGES)
    assert (coverage.macs_quantized, coverage.violations) == (0, [])


def test_measure_coverage_does_not_change_student() -> None:
    made = student("w4a4")
    seen = made.images_seen
    measure_coverage(made, IMAGES)
    assert made.images_seen == seen
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in made.modules())


@pytest.mark.parametrize(
    ("values", "bits", "expected"),
    [
        (torch.tensor([0.0, 0.1, 0.2, 0.5]), 3, True),
        (torch.tensor([0.0, 0.1, 0.2, 0.55]), 3, False),
        (torch.tensor([0.0, 0.1, 0.2, 0.3, 0.4]), 2, False),
        (torch.tensor([-7.5, 3.25]), 2, True),
        (torch.tensor([0.0, 1.0, 15.0]), 4, True),
        (torch.tensor([0.0, 1.0, 16.0]), 4, False),
        (torch.tensor([0.0, float("nan")]), 4, False),
        (torch.tensor([0.0, float("inf")]), 4, False),
    ],
)
def test_even_spacing(values: Tensor, bits: int, expected: bool) -> None:
    assert is_quantized(values, bits) is expected


def test_levels_of_a_large_tensor_are_all_found() -> None:
    values = torch.zeros(1_000_000)
    values[123_457] = 1.0  # not among the elements looked at first
    levels = distinct_levels(values, 4)
    assert levels is not None
    assert levels.tolist() == [0.0, 1.0]
    assert distinct_levels(torch.arange(100_000.0), 256) is None


def sum_of_terms(label: str = "w4a4@deploy") -> tuple[Student, FakeQuantizeWeight]:
    """Return a student all of whose weights are sums of two terms, and the weight quantizer of its second layer."""
    made = student(label)
    expand(made, terms=2, gamma=1.0)
    quantizers = {name: quantizer for name, _, quantizer in made.quantized_weights()}
    return made, quantizers["2"]


@pytest.mark.parametrize("label", ["w4a4@deploy", "w2a4@tensor", "w3a4@gdfq"])
def test_sum_of_terms_is_quantized(label: str) -> None:
    coverage = measure_coverage(sum_of_terms(label)[0], IMAGES)
    assert coverage.violations == []
    assert coverage.as_dict()["weight_terms"] == 2.0


@pytest.mark.parametrize("fault", ["float", "noise", "scale", "width", "shape", "first term", "step"])
@pytest.mark.parametrize("label", ["w4a4@deploy", "w4a4@tensor"])
def test_weight_that_is_not_the_claimed_sum_is_a_violation(label: str, fault: str) -> None:
    made, quantizer = sum_of_terms(label)
    scales = quantizer.residual_scales
    assert scales is not None
    assert quantizer.scale is not None
    rounded = quantizer.forward
    if fault in {"float", "step"}:
        quantizer.forward = lambda weight: weight  # type: ignore[method-assign]
    if fault == "step":  # large beside every weight, so that all are near its level 0
        quantizer.freeze(quantizer.scale * 1e6, torch.zeros_like(quantizer.scale), scales * 0)
    if fault == "noise":
        quantizer.forward = lambda weight: rounded(weight) + 0.3 * scales.max()  # type: ignore[method-assign]
    elif fault == "scale":
        summed = quantizer(made.network.get_submodule("2").parametrizations.weight.original)  # type: ignore[union-attr]
        quantizer.forward = lambda weight: summed  # type: ignore[method-assign]  # noqa: ARG005
        quantizer.residual_scales = scales * 1.3
    elif fault == "width":
        quantizer.bits = 6
        expand(made, terms=2, gamma=1.0)
    elif fault == "shape":
        quantizer.residual_scales = scales[:, :1]
    elif fault == "first term":
        quantizer.scale = None
    assert measure_coverage(made, IMAGES).violations == ["weight 2"]


def test_scale_for_each_channel_is_a_violation_where_a_tensor_has_one_range() -> None:
    made, quantizer = sum_of_terms("w4a4@tensor")
    assert quantizer.residual_scales is not None
    quantizer.residual_scales[0, 0] /= 2
    assert measure_coverage(made, IMAGES).violations == ["weight 2"]


def test_bit_operations_are_counted_by_hand() -> None:
    first, second, head = 6 * 64 * 27, 6 * 36 * 54, 216 * 5
    coverage = measure_coverage(student("w4a3"), IMAGES).as_dict()
    assert coverage["bit_operations"] == first * 4 * 32 + second * 4 * 3 + head * 4 * 3
    assert coverage["weight_terms"] == 1.0
    coverage = measure_coverage(student("w4a4@deploy"), IMAGES).as_dict()
    assert coverage["bit_operations"] == first * 8 * 8 + second * 4 * 4 + head * 8 * 8
    coverage = measure_coverage(student("w32a32"), IMAGES).as_dict()
    assert coverage["bit_operations"] == (first + second + head) * 32 * 32


def test_bit_operations_count_every_term_of_the_channels_that_have_it() -> None:
    made = student("w4a4@deploy")
    expand(made, terms=2, gamma=0.5)
    first, second, head = 6 * 64 * 27, 6 * 36 * 54, 216 * 5
    coverage = measure_coverage(made, IMAGES).as_dict()
    assert coverage["bit_operations"] == first * 8 * 8 + second * 4 * 4 * 3 // 2 + head * 8 * 8 * 2
    assert coverage["weight_terms"] == (first + second * 3 // 2 + head * 2) / (first + second + head)


def test_levels_per_channel() -> None:
    assert most_levels_per_channel(torch.tensor([[1.0, 1.0, 2.0], [1.0, 2.0, 3.0]])) == 3
    assert most_levels_per_channel(torch.zeros(4, 7)) == 1
