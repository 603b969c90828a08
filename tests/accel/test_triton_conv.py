"""Triton's convolutions between few channels, interpreted, against torch's."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dfqbench.quant.fake_quantize import fake_quantize, fake_quantize_channels, zeroq_qparams
from dfqbench.quant.integer_conv import integer_conv2d

pytest.importorskip("triton", reason="Triton is not installed")

from dfqbench.accel.triton import conv
from dfqbench.accel.triton.conv import NarrowConvolutions, convolved, integer_conv2d_form, weight_gradient

pytestmark = pytest.mark.usefixtures("interpreter")

autocast = partial(torch.autocast, "cpu", torch.bfloat16)
GEOMETRY = [1, 1], [1, 1], [1, 1], 1
ORDERS = (torch.channels_last, torch.contiguous_format)
SIZES = ((3, 16, 16, 6, 7), (2, 3, 16, 5, 5), (2, 24, 5, 4, 9), (1, 32, 64, 8, 3), (3, 64, 3, 5, 4), (2, 16, 8, 1, 1))
"""Samples, channels of input and output, height and width."""


def operands(size: tuple[int, ...], dtype: torch.dtype = torch.bfloat16) -> tuple[Tensor, Tensor, Tensor]:
    """Return input, weight and the gradient at the output, whose values are those that the type holds."""
    samples, channels, outer, height, width = size
    random = torch.Generator().manual_seed(0)
    shapes = (samples, channels, height, width), (outer, channels, 3, 3), (samples, outer, height, width)
    x, weight, grad = (
        torch.randn(shape, generator=random).to(dtype).contiguous(memory_format=torch.channels_last) for shape in shapes
    )
    return x, weight, grad


def exact(x: Tensor, weight: Tensor, grad: Tensor) -> list[Tensor]:
    """Return the output and the gradients in input and weight in double precision."""
    leaves = [x.double().requires_grad_(), weight.double().requires_grad_()]
    out = F.conv2d(leaves[0], leaves[1], padding=1)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad.double())]


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return float((actual.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("order", ORDERS)
def test_convolution_and_its_gradients_are_those_of_double_precision(
    size: tuple[int, ...], dtype: torch.dtype, order: torch.memory_format
) -> None:
    channels, outer = size[1:3]
    x, weight, grad = operands(size, dtype)
    expected = exact(x, weight, grad)
    weight = weight.contiguous(memory_format=order)
    actual = [
        convolved(x, weight, dtype=torch.float32),
        convolved(grad, weight, dtype=torch.float32, back=True),
        weight_gradient(x, grad, weight),
    ]
    by_library = channels > conv.FEW_INPUTS and outer < conv.FEWEST_OUTPUTS and dtype == torch.bfloat16
    for index, (a, b) in enumerate(zip(actual, expected, strict=True)):
        # The library rounds the gradient in the weight to bfloat16.
        rtol, atol = (2**-8, 0.1) if by_library and index == 2 else (1e-5, 1e-4)
        torch.testing.assert_close(a.double(), b, rtol=rtol, atol=atol)
    assert torch.equal(convolved(x, weight), actual[0].to(dtype))
    assert actual[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("positions", [257, 1000])
def test_weight_gradient_sums_many_slices_of_positions(monkeypatch: pytest.MonkeyPatch, positions: int) -> None:
    monkeypatch.setattr(conv, "CONV_SLICES", 4)
    x, weight, grad = operands((1, 1, 1, 1, positions))
    assert relative_error(weight_gradient(x, grad, weight), exact(x, weight, grad)[2]) <= 1e-6


def test_float32_weight_is_rounded_as_torch_rounds_it() -> None:
    x, _, grad = operands((2, 16, 16, 5, 5))
    weight = torch.randn(16, 16, 3, 3, generator=torch.Generator().manual_seed(1))
    assert torch.equal(convolved(x, weight), convolved(x, weight.to(torch.bfloat16)))
    assert torch.equal(convolved(grad, weight, back=True), convolved(grad, weight.to(torch.bfloat16), back=True))


@pytest.mark.parametrize("size", [(2, 16, 24, 5, 6), (2, 48, 8, 3, 5)])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("per_channel", [True, False])
def test_integer_conv2d_computes_exactly_on_the_integers(
    size: tuple[int, ...], order: torch.memory_format, per_channel: bool
) -> None:
    """The second size takes the library's gradient in the weight."""
    x, weight, grad = operands(size, torch.float32)
    weight, grad = weight.contiguous(memory_format=order), grad.contiguous()
    x_scale, shift = zeroq_qparams(x.min(), x.max(), 4)
    x = fake_quantize(x, x_scale, shift, 4)
    if per_channel:
        weight, w_scale = fake_quantize_channels(weight, 4)
    else:
        w_scale, shift = zeroq_qparams(weight.min(), weight.max(), 4)
        weight = fake_quantize(weight, w_scale, shift, 4)
    leaves = [x.requires_grad_(), weight.requires_grad_()]

    def train(form: Any) -> list[Tensor]:
        out = form.__wrapped__(*leaves, x_scale, w_scale, *GEOMETRY)
        return [out.detach(), *torch.autograd.grad(out, leaves, grad)]

    actual, definition = train(integer_conv2d_form), train(integer_conv2d)
    integers = F.conv2d((x * x_scale).round().double(), (weight * w_scale).round().double(), padding=1)
    factor = (x_scale * w_scale.view(1, -1, 1, 1)).reciprocal()
    assert torch.equal(actual[0], (integers.float() * factor).detach())
    # The definition rounds its sums to bfloat16.
    for a, b, whole in zip(actual, definition, exact(x, weight, grad), strict=True):
        assert a.dtype == b.dtype == torch.float32
        assert relative_error(a, b) <= 2**-7
        assert relative_error(a, whole) <= 2**-8


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Outputs and inputs of the convolutions that the kernels computed."""
    channels: list[tuple[int, ...]] = []

    def counted(x: Tensor, weight: Tensor, *, back: bool = False) -> Tensor:
        if not back:
            channels.append(tuple(weight.shape[:2]))
        return convolved(x, weight, back=back)

    monkeypatch.setattr(conv, "convolved", counted)
    return channels


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.conv2d(x, weight, bias, 1, 1, 1, 1)


def test_narrow_convolutions_train_a_network_as_torch_does(launches: list[tuple[int, ...]]) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 8, 3, padding=1, bias=False), nn.Conv2d(8, 4, 1)
    ).to(memory_format=torch.channels_last)
    images = torch.randn(3, 3, 7, 6).contiguous(memory_format=torch.channels_last).requires_grad_()

    def train() -> list[Tensor]:
        with autocast():
            out = network(images).float()
        return [out.detach(), *torch.autograd.grad(out.square().sum(), [images, *network.parameters()])]

    expected = train()
    assert not launches
    with NarrowConvolutions("cpu"):
        actual = train()
    assert launches == [(16, 3), (8, 16)]
    for a, b in zip(actual, expected, strict=True):
        assert a.dtype == b.dtype
        assert relative_error(a, b) <= 0.02


def test_narrow_convolutions_leave_the_rest_to_torch(launches: list[tuple[int, ...]]) -> None:
    x, weight, _ = operands((2, 16, 16, 5, 5), torch.float32)
    with NarrowConvolutions("cpu"):
        assert conv2d(x, weight).dtype == torch.float32  # no autocast
        with torch.autocast("cpu", torch.float16):
            assert conv2d(x, weight).dtype == torch.float16
        with autocast():
            assert conv2d(x.double(), weight.double()).dtype == torch.float64
            conv2d(x.as_subclass(type("Subclass", (Tensor,), {})), weight)
            F.conv2d(x, weight, stride=2)
            graph = torch.fx.symbolic_trace(nn.Conv2d(16, 16, 3, padding=1))
            gradient = torch.func.grad(lambda w: conv2d(x, w).float().square().sum())(weight)
            mapped = torch.func.vmap(lambda image: conv2d(image[None], weight))(x)
    with NarrowConvolutions(), autocast():
        conv2d(x, weight)  # a tensor of another device
    assert not launches
    assert graph(x).shape == x.shape
    with autocast():
        assert torch.equal(gradient, torch.func.grad(lambda w: conv2d(x, w).float().square().sum())(weight))
        assert relative_error(mapped[:, 0], conv2d(x, weight)) <= 2**-7


def test_second_derivatives_of_narrow_convolutions_are_torchs(launches: list[tuple[int, ...]]) -> None:
    x, weight, _ = operands((2, 16, 16, 5, 5), torch.float32)
    x.requires_grad_()

    def second() -> Tensor:
        with autocast():
            out = conv2d(x, weight, torch.ones(16))
        (first,) = torch.autograd.grad(out.float().square().sum(), x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), x)[0]

    expected = second()
    with NarrowConvolutions("cpu"):
        actual = second()
    assert launches == [(16, 16)]
    assert relative_error(actual, expected) <= 0.02
