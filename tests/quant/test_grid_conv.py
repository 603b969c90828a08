from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dfqbench.quant import grid_conv, parse_scheme, prepare
from dfqbench.quant.fake import integral_shift, quantize_integral_shift, quantize_weight, quantize_with_codes
from dfqbench.quant.grid_conv import GridConvolutions, on_grid
from dfqbench.testing.toys import toy_card, toy_network


def _operands(bits: int, groups: int = 1) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(bits)
    x = torch.rand((6, 4, 9, 9), generator=random).requires_grad_()
    weight = (torch.randn((8, 4 // groups, 3, 3), generator=random) / 6).requires_grad_()
    return x, weight


def _quantized(x: Tensor, weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    scale, shift = integral_shift(torch.zeros(()), torch.ones(()), bits)
    kept, codes = quantize_with_codes(x, scale, shift, bits)
    grid = quantize_weight(weight, bits, rounding="integral_shift", symmetric=False, per_channel=True)
    return on_grid(kept, scale, codes), grid


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize(("stride", "padding", "groups"), [(1, 1, 1), (2, 0, 1), (1, 1, 4)])
def test_only_the_result_is_rounded(bits: int, stride: int, padding: int, groups: int) -> None:
    x, weight = _operands(bits, groups)
    on_x, on_w = _quantized(x, weight, bits)
    wanted = F.conv2d(on_x.double(), on_w.double(), None, stride, padding, 1, groups)
    with GridConvolutions():
        found = F.conv2d(on_x, on_w, None, stride, padding, 1, groups)
    assert found.dtype == torch.float32
    # bfloat16 has eight significant bits: half a unit in the last place, and nothing for the operands.
    torch.testing.assert_close(found.double(), wanted, rtol=2**-8, atol=1e-6)
    if bits == 2:
        # Sums of small integers fit bfloat16, so there is nothing to round at all.
        torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-6)


def test_gradients_are_those_of_the_float_convolution() -> None:
    x, weight = _operands(4)
    upstream = torch.randn((6, 8, 9, 9), generator=torch.Generator().manual_seed(1))
    wanted = torch.autograd.grad(F.conv2d(*_quantized(x, weight, 4), padding=1), (x, weight), upstream)
    with GridConvolutions():
        found = torch.autograd.grad(F.conv2d(*_quantized(x, weight, 4), padding=1), (x, weight), upstream)
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.dtype == torch.float32
        assert float((ours - theirs).norm() / theirs.norm()) < 0.01


def test_codes_are_the_grid() -> None:
    x, _ = _operands(8)
    scale, shift = integral_shift(torch.tensor(-0.3), torch.tensor(1.7), 8)
    rounded, codes = quantize_with_codes(x, scale, shift, 8)
    assert torch.equal(rounded, quantize_integral_shift(x, scale, shift, 8))
    assert torch.equal(codes.float(), torch.round(rounded * scale))
    (gradient,) = torch.autograd.grad(rounded.sum(), x)
    assert torch.equal(gradient, torch.ones_like(x))


@pytest.mark.parametrize("label", ["w4a4@gdfq", "w3a3@deploy"])
def test_a_student_differs_by_rounding_in_training_and_not_at_all_in_evaluation(
    label: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[torch.dtype] = []
    scaled = grid_conv._scaled

    def counted(x: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
        calls.append(dtype)
        return scaled(x, factor, dtype)

    monkeypatch.setattr(grid_conv, "_scaled", counted)
    images = torch.randn((8, 3, 8, 8), generator=torch.Generator().manual_seed(1))
    student = prepare(toy_network(), parse_scheme(label), toy_card())
    with torch.no_grad(), student.observing("minmax"):
        student(images)
    with torch.no_grad():
        evaluated = student(images)
    exact = student(images)
    student.grid_convolutions = True
    fast = student(images)
    with torch.no_grad():
        assert torch.equal(student(images), evaluated)
    # Both convolutions where inputs are quantized, the second alone where the image is not.
    assert len(calls) == (2 if label.endswith("deploy") else 1)
    assert float((fast - exact).detach().norm() / exact.detach().norm()) < 0.05
    fast.square().mean().backward()
    gradients = [p.grad for p in student.parameters()]
    assert all(gradient is not None and bool(torch.isfinite(gradient).all()) for gradient in gradients)


def test_operands_off_a_known_grid_are_computed_as_ever() -> None:
    x, weight = _operands(4)
    with GridConvolutions():
        found = F.conv2d(x, weight, padding=1)
        half_known = F.conv2d(x, _quantized(x, weight, 4)[1], padding=1)
    assert torch.equal(found, F.conv2d(x, weight, padding=1))
    assert torch.equal(half_known, F.conv2d(x, _quantized(x, weight, 4)[1], padding=1))
