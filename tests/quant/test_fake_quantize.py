"""Fake quantization against independent computations in NumPy, from the formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dfqbench.quant.fake_quantize import (
    affine_integers,
    affine_qparams,
    fake_quantize,
    fake_quantize_affine,
    fake_quantize_weight,
    zeroq_qparams,
)
from dfqbench.quant.scheme import ClampGradient, Granularity, Operand, Rounding

BITS = [2, 3, 4, 5, 8]


def operand(rounding: Rounding, *, symmetric: bool = False, per_channel: bool = True) -> Operand:
    granularity = Granularity.CHANNEL if per_channel else Granularity.TENSOR
    return Operand(granularity, symmetric, False, rounding, ClampGradient.PASS)


def zeroq_formula(x: np.ndarray, low: float, high: float, bits: int) -> np.ndarray:
    """methods.md 0.1, in float64."""
    n = 2**bits - 1
    s = n / max(high - low, 1e-8)
    z = np.round(s * low) + 2 ** (bits - 1)
    q = np.clip(np.round(s * x - z), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return (q + z) / s


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(("low", "high"), [(-1.3, 2.1), (0.0, 6.0), (0.4, 0.9), (-3.0, -0.2)])
def test_shifted_levels_equal_the_formula(bits: int, low: float, high: float) -> None:
    x = torch.randn(4000, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 2
    scale, shift = zeroq_qparams(torch.tensor(low, dtype=torch.float64), torch.tensor(high, dtype=torch.float64), bits)
    actual = fake_quantize(x, scale, shift, bits)
    assert np.allclose(actual.numpy(), zeroq_formula(x.numpy(), low, high, bits), atol=1e-12)
    assert len(actual.unique()) <= 2**bits


def test_zero_is_a_level_where_the_range_contains_it() -> None:
    scale, shift = zeroq_qparams(torch.tensor(-0.37), torch.tensor(1.91), 4)
    assert fake_quantize(torch.zeros(1), scale, shift, 4).item() == 0.0


def test_gradient_of_clamped_elements_passes_in_shifted_levels_and_is_masked_in_affine_ones() -> None:
    x, factors = torch.tensor([-50.0, 0.2, 50.0], requires_grad=True), torch.tensor([1.0, 2.0, 3.0])
    low, high = torch.tensor(-1.0), torch.tensor(1.0)
    shifted = fake_quantize(x, *zeroq_qparams(low, high, 3), 3)
    affine = fake_quantize_affine(x, *affine_qparams(low, high, 3, symmetric=False), 3, symmetric=False)
    assert torch.autograd.grad((shifted * factors).sum(), x)[0].tolist() == [1.0, 2.0, 3.0]
    assert torch.autograd.grad((affine * factors).sum(), x)[0].tolist() == [0.0, 2.0, 0.0]


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("symmetric", [True, False])
def test_affine_levels_equal_the_formula(bits: int, symmetric: bool) -> None:
    x = torch.randn(3000, generator=torch.Generator().manual_seed(2))
    low, high = torch.tensor(-1.05), torch.tensor(2.3)
    scale, zero_point = affine_qparams(low, high, bits, symmetric=symmetric)
    lowest, highest = affine_integers(bits, symmetric=symmetric)
    step = 2.3 / (2 ** (bits - 1) - 1) if symmetric else 3.35 / (2**bits - 1)
    zero = 0 if symmetric else round(1.05 / step)
    codes = np.clip(np.round(x.double().numpy() / step) + zero, lowest, highest)
    actual = fake_quantize_affine(x, scale, zero_point, bits, symmetric=symmetric).numpy()
    # float32 and float64 may round a tie to different neighbours: allowed for one element in a thousand.
    wrong = np.abs(actual - (codes - zero) * step) > 1e-5
    assert wrong.mean() < 1e-3
    assert len(np.unique(actual)) <= (2**bits - 1 if symmetric else 2**bits)


def test_affine_range_is_widened_to_zero() -> None:
    scale, zero_point = affine_qparams(torch.tensor(2.0), torch.tensor(4.0), 4, symmetric=False)
    assert zero_point.item() == 0
    assert scale.item() == pytest.approx(4.0 / 15)


@pytest.mark.parametrize("rounding", list(Rounding))
@pytest.mark.parametrize("bits", [2, 4])
def test_weight_levels_per_channel(rounding: Rounding, bits: int) -> None:
    weight = torch.randn(6, 5, 3, 3, generator=torch.Generator().manual_seed(3)) * torch.arange(1, 7).view(-1, 1, 1, 1)
    actual, factor = fake_quantize_weight(weight, operand(rounding, symmetric=True), bits)
    integers = actual * factor
    assert torch.allclose(integers, integers.round(), atol=1e-4)
    for channel in range(6):
        assert len(actual[channel].unique()) <= 2**bits
    assert len(actual.unique()) > 2**bits
    if rounding is Rounding.ZEROQ:
        channel_range = weight[2].min().item(), weight[2].max().item()
        expected = zeroq_formula(weight[2].numpy(), *channel_range, bits)
        assert np.allclose(actual[2].numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("value", [0.0, 0.7, -3.0])
def test_a_constant_weight_stays_finite(value: float) -> None:
    actual, _ = fake_quantize_weight(torch.full((2, 3), value), operand(Rounding.ZEROQ), 4)
    assert torch.allclose(actual, torch.full((2, 3), value), atol=1e-3)


def test_weight_range_carries_no_gradient() -> None:
    weight = torch.randn(2, 9, requires_grad=True)
    actual, _ = fake_quantize_weight(weight, operand(Rounding.ZEROQ), 2)
    assert torch.equal(torch.autograd.grad(actual.sum(), weight)[0], torch.ones(2, 9))


@pytest.mark.parametrize("rounding", list(Rounding))
def test_one_range_for_the_whole_weight(rounding: Rounding) -> None:
    weight = torch.randn(6, 9, generator=torch.Generator().manual_seed(3)) * torch.arange(1, 7).view(-1, 1)
    actual, factor = fake_quantize_weight(weight, operand(rounding, per_channel=False), 3)
    assert factor.ndim == 0
    assert len(actual.unique()) <= 8
    assert float((actual - weight).abs().max()) <= float(weight.max() - weight.min()) / 7
