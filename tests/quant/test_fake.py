"""The grids against independent computations in NumPy, from the formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dfqbench.quant.fake import (
    affine_grid,
    code_range,
    integral_shift,
    quantize_affine,
    quantize_integral_shift,
    quantize_weight,
)

BITS = [2, 3, 4, 5, 8]


def family_formula(x: np.ndarray, low: float, high: float, bits: int) -> np.ndarray:
    """methods.md 0.1, in float64."""
    n = 2**bits - 1
    s = n / max(high - low, 1e-8)
    z = np.round(s * low) + 2 ** (bits - 1)
    q = np.clip(np.round(s * x - z), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return (q + z) / s


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(("low", "high"), [(-1.3, 2.1), (0.0, 6.0), (0.4, 0.9), (-3.0, -0.2)])
def test_family_grid_equals_the_formula(bits: int, low: float, high: float) -> None:
    x = torch.randn(4000, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 2
    scale, shift = integral_shift(torch.tensor(low, dtype=torch.float64), torch.tensor(high, dtype=torch.float64), bits)
    found = quantize_integral_shift(x, scale, shift, bits)
    assert np.allclose(found.numpy(), family_formula(x.numpy(), low, high, bits), atol=1e-12)
    assert len(found.unique()) <= 2**bits


def test_family_grid_holds_zero_exactly_when_the_range_does() -> None:
    scale, shift = integral_shift(torch.tensor(-0.37), torch.tensor(1.91), 4)
    assert quantize_integral_shift(torch.zeros(1), scale, shift, 4).item() == 0.0


def test_family_gradient_passes_clamped_elements() -> None:
    x = torch.tensor([-50.0, 0.2, 50.0], requires_grad=True)
    scale, shift = integral_shift(torch.tensor(-1.0), torch.tensor(1.0), 3)
    (quantize_integral_shift(x, scale, shift, 3) * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [1.0, 2.0, 3.0]


def test_deploy_gradient_is_masked_where_clamped() -> None:
    x = torch.tensor([-50.0, 0.2, 50.0], requires_grad=True)
    scale, zero_point = affine_grid(torch.tensor(-1.0), torch.tensor(1.0), 3, symmetric=False)
    quantize_affine(x, scale, zero_point, 3, symmetric=False).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0.0, 1.0, 0.0]


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("symmetric", [True, False])
def test_affine_grid_equals_the_formula(bits: int, symmetric: bool) -> None:
    x = torch.randn(3000, generator=torch.Generator().manual_seed(2))
    low, high = torch.tensor(-1.05), torch.tensor(2.3)
    scale, zero_point = affine_grid(low, high, bits, symmetric=symmetric)
    lowest, highest = code_range(bits, symmetric=symmetric)
    step = 2.3 / (2 ** (bits - 1) - 1) if symmetric else 3.35 / (2**bits - 1)
    zero = 0 if symmetric else round(1.05 / step)
    codes = np.clip(np.round(x.double().numpy() / step) + zero, lowest, highest)
    found = quantize_affine(x, scale, zero_point, bits, symmetric=symmetric).numpy()
    # float32 and float64 may round a tie to different neighbours: allowed for one element in a thousand.
    wrong = np.abs(found - (codes - zero) * step) > 1e-5
    assert wrong.mean() < 1e-3
    assert len(np.unique(found)) <= (2**bits - 1 if symmetric else 2**bits)


def test_affine_range_is_widened_to_zero() -> None:
    scale, zero_point = affine_grid(torch.tensor(2.0), torch.tensor(4.0), 4, symmetric=False)
    assert zero_point.item() == 0
    assert scale.item() == pytest.approx(4.0 / 15)


@pytest.mark.parametrize("rounding", ["integral_shift", "scale_zero_point"])
@pytest.mark.parametrize("bits", [2, 4])
def test_weight_levels_per_channel(rounding: str, bits: int) -> None:
    weight = torch.randn(6, 5, 3, 3, generator=torch.Generator().manual_seed(3)) * torch.arange(1, 7).view(-1, 1, 1, 1)
    found = quantize_weight(weight, bits, rounding=rounding, symmetric=True, per_channel=True)
    for channel in range(6):
        assert len(found[channel].unique()) <= 2**bits
    assert len(found.unique()) > 2**bits
    if rounding == "integral_shift":
        channel_range = weight[2].min().item(), weight[2].max().item()
        expected = family_formula(weight[2].numpy(), *channel_range, bits)
        assert np.allclose(found[2].numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("value", [0.0, 0.7, -3.0])
def test_a_constant_weight_stays_finite(value: float) -> None:
    found = quantize_weight(torch.full((2, 3), value), 4, rounding="integral_shift", symmetric=False, per_channel=True)
    assert torch.isfinite(found).all()
    assert torch.allclose(found, torch.full((2, 3), value), atol=1e-3)


def test_weight_range_carries_no_gradient() -> None:
    weight = torch.randn(2, 9, requires_grad=True)
    quantize_weight(weight, 2, rounding="integral_shift", symmetric=False, per_channel=True).sum().backward()
    assert weight.grad is not None
    assert torch.equal(weight.grad, torch.ones(2, 9))
