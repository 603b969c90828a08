"""Convolutions on integers in bfloat16: only results and gradients are rounded."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dfqbench.quant import parse_scheme, prepare
from dfqbench.quant.fake_quantize import fake_quantize, fake_quantize_channels, zeroq_qparams
from dfqbench.quant.integer_conv import int_repr, integer_conv2d
from dfqbench.testing.toys import toy_card, toy_network

IMAGES = torch.randn((8, 3, 8, 8), generator=torch.Generator().manual_seed(1))


def leaves(bits: int, groups: int = 1) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(bits)
    x = torch.rand((6, 4, 9, 9), generator=random).requires_grad_()
    weight = (torch.randn((8, 4 // groups, 3, 3), generator=random) / 6).requires_grad_()
    return x, weight


def quantized(x: Tensor, weight: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    scale, shift = zeroq_qparams(torch.zeros(()), torch.ones(()), bits)
    rounded, w_scale = fake_quantize_channels(weight, bits)
    return fake_quantize(x, scale, shift, bits), rounded, scale, w_scale


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize(("stride", "padding", "groups"), [(1, 1, 1), (2, 0, 1), (1, 1, 4)])
def test_only_the_result_is_rounded(bits: int, stride: int, padding: int, groups: int) -> None:
    x, weight, x_scale, w_scale = quantized(*leaves(bits, groups), bits)
    expected = F.conv2d(x.double(), weight.double(), None, stride, padding, 1, groups)
    actual = integer_conv2d(x, weight, x_scale, w_scale, [stride] * 2, [padding] * 2, [1, 1], groups)
    assert actual.dtype == torch.float32
    # bfloat16 has eight significant bits: half a unit in the last place, and nothing for the operands.
    torch.testing.assert_close(actual.double(), expected, rtol=2**-8, atol=1e-6)
    if bits == 2:
        # Sums of small integers fit bfloat16, so there is nothing to round at all.
        torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-6)


def test_gradients_are_those_of_the_float_convolution() -> None:
    x, weight = leaves(4)
    upstream = torch.randn((6, 8, 9, 9), generator=torch.Generator().manual_seed(1))
    on_x, on_w, *scales = quantized(x, weight, 4)
    expected = torch.autograd.grad(F.conv2d(on_x, on_w, padding=1), (x, weight), upstream, retain_graph=True)
    actual = torch.autograd.grad(
        integer_conv2d(on_x, on_w, scales[0], scales[1], [1, 1], [1, 1], [1, 1], 1), (x, weight), upstream
    )
    for a, b in zip(actual, expected, strict=True):
        assert a.dtype == torch.float32
        assert float((a - b).norm() / b.norm()) < 0.01


def test_gradients_of_a_strided_depthwise_convolution_are_computed_in_float32_on_a_cpu() -> None:
    x, weight = leaves(4, groups=4)
    on_x, on_w, *scales = quantized(x, weight, 4)
    out = integer_conv2d(on_x, on_w, scales[0], scales[1], [2, 2], [1, 1], [1, 1], 4)
    expected = F.conv2d(on_x, on_w, None, 2, 1, 1, 4)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    (of_x,) = torch.autograd.grad(out, on_x, upstream)
    assert not torch.equal(of_x, of_x.bfloat16().float())
    (reference,) = torch.autograd.grad(expected, on_x, upstream)
    assert float((of_x - reference).norm() / reference.norm()) < 0.01


def test_integers_of_eight_bits_are_exact() -> None:
    scale, shift = zeroq_qparams(torch.tensor(-0.3), torch.tensor(1.7), 8)
    x = fake_quantize(leaves(8)[0].detach(), scale, shift, 8)
    assert torch.equal(int_repr(x, scale).float(), torch.round(x * scale))


@pytest.mark.parametrize("label", ["w8a8@gdfq", "w8a8@deploy"])
def test_student_differs_by_rounding_in_training_and_not_at_all_in_evaluation(label: str) -> None:
    student = prepare(toy_network(), parse_scheme(label), toy_card())
    with torch.no_grad(), student.observing("minmax"):
        student(IMAGES)
    with torch.no_grad():
        evaluated = student(IMAGES)
    exact = student(IMAGES)
    student.use_integer_convolutions()
    fast = student(IMAGES)
    with torch.no_grad():
        assert torch.equal(student(IMAGES), evaluated)
    difference = float((fast - exact).detach().norm() / exact.detach().norm())
    assert 0 < difference < 0.05
    fast.square().mean().backward()
    gradients = [p.grad for p in student.parameters()]
    assert all(gradient is not None and bool(torch.isfinite(gradient).all()) for gradient in gradients)
    assert torch.equal(copy.deepcopy(student)(IMAGES), fast)
    student.use_integer_convolutions(False)
    assert torch.equal(student(IMAGES), exact)


def test_convolution_of_a_float_image_stays_in_float() -> None:
    student = prepare(toy_network(), parse_scheme("w4a32@gdfq"), toy_card())
    exact = student(IMAGES)
    student.use_integer_convolutions()
    assert torch.equal(student(IMAGES), exact)
