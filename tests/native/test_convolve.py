"""Convolutions between few channels by the kernels for GPUs, interpreted here, against torch's."""

from __future__ import annotations

import pytest
import torch
from dfqbench.native import binding, convolve
from dfqbench.native.autocast import Autocast
from dfqbench.quant.fake import integral_shift, quantize_weight, quantize_with_codes
from dfqbench.quant.grid_conv import GridConvolutions, on_grid
from torch import Tensor, nn
from torch.nn import functional as F

from dfqbench.models.cifar import CifarResNet

NUMBERS = ((1, 1), (1, 1), (1, 1), 1)
SIZES = ((3, 16, 16, 6, 7), (2, 3, 16, 5, 5), (2, 24, 5, 4, 9), (1, 32, 64, 8, 3), (3, 64, 3, 5, 4), (2, 16, 8, 1, 1))
"""Samples, channels of input and output, height and width."""


def operands(size: tuple[int, ...], dtype: torch.dtype = torch.bfloat16) -> tuple[Tensor, Tensor, Tensor]:
    """Input, weight and gradient at the output; the weight's values are those that the type holds."""
    samples, channels, outer, height, width = size
    random = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random).to(dtype).contiguous(memory_format=torch.channels_last)

    weight = drawn(outer, channels, 3, 3)
    return drawn(samples, channels, height, width), weight, drawn(samples, outer, height, width)


def exact(x: Tensor, weight: Tensor, grad: Tensor) -> list[Tensor]:
    leaves = x.double().requires_grad_(), weight.double().requires_grad_()
    out = F.conv2d(leaves[0], leaves[1], padding=1)
    out.backward(grad.double())
    return [out.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("order", [torch.channels_last, torch.contiguous_format])
def test_a_convolution_and_its_gradients_are_those_of_double_precision(
    kernels: None, size: tuple[int, ...], dtype: torch.dtype, order: torch.memory_format
) -> None:
    x, weight, grad = operands(size, dtype)
    wanted = exact(x, weight, grad)
    weight = weight.contiguous(memory_format=order)
    assert convolve.fits(x, weight, NUMBERS)
    found = [
        convolve.convolved(x, weight, dtype=torch.float32),
        convolve.data_gradient(grad.contiguous(), weight, dtype=torch.float32),
        convolve.weight_gradient(x, grad.contiguous(), weight),
    ]
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-4)
    assert found[2].stride() == weight.stride()
    narrow = convolve.convolved(x, weight)
    assert narrow.dtype == dtype
    assert torch.equal(narrow, found[0].to(dtype))
    assert narrow.is_contiguous(memory_format=torch.channels_last)


def test_a_float32_weight_is_rounded_as_torch_rounds_it(kernels: None) -> None:
    x, _, grad = operands((2, 16, 16, 5, 5))
    weight = torch.randn(16, 16, 3, 3, generator=torch.Generator().manual_seed(1))
    assert torch.equal(convolve.convolved(x, weight), convolve.convolved(x, weight.to(torch.bfloat16)))
    assert torch.equal(convolve.data_gradient(grad, weight), convolve.data_gradient(grad, weight.to(torch.bfloat16)))


def test_sums_are_multiplied_before_they_are_rounded(kernels: None) -> None:
    x, weight, grad = operands((2, 16, 24, 5, 5))
    factor = torch.rand(24) + 0.5
    plain = convolve.convolved(x, weight, dtype=torch.float32)
    assert torch.equal(
        convolve.convolved(x, weight, factor=factor), (plain * factor.view(1, -1, 1, 1)).to(torch.bfloat16)
    )
    to_weight = convolve.weight_gradient(x, grad, weight)
    assert torch.equal(convolve.weight_gradient(x, grad, weight, factor=factor), to_weight * factor.view(-1, 1, 1, 1))
    one = torch.full((1,), 0.7)
    assert torch.equal(convolve.convolved(x, weight, factor=one, dtype=torch.float32), plain * one)


def test_what_does_not_fit_is_left_to_torch(kernels: None) -> None:
    x, weight, grad = operands((2, 16, 16, 6, 6))
    assert convolve.fits(x, weight, NUMBERS)
    assert convolve.fits(x, weight, (1, 1, 1, 1))
    assert not convolve.fits(x, weight, ((2, 2), *NUMBERS[1:]))
    assert not convolve.fits(x, weight, ((1, 1), (0, 0), (1, 1), 1))
    assert not convolve.fits(x, weight, ((1, 1), "same", (1, 1), 1))
    assert not convolve.fits(x, weight, ((1, 1), (1, 1), (2, 2), 1))
    assert not convolve.fits(x, weight[:, :4], (*NUMBERS[:3], 4))
    assert not convolve.fits(x, torch.randn(16, 16, 1, 1), NUMBERS)
    assert not convolve.fits(x, torch.randn(128, 16, 3, 3), NUMBERS)
    assert not convolve.fits(x.contiguous(), weight, NUMBERS)
    assert not convolve.fits(x.double(), weight, NUMBERS)
    assert not convolve.fits(x[:0], weight, NUMBERS)
    with binding.using(None):
        assert not convolve.fits(x, weight, NUMBERS)
    with pytest.raises(ValueError, match="does not fit"):
        convolve.convolved(x[:, :8], weight)
    with pytest.raises(ValueError, match="does not fit"):
        convolve.weight_gradient(x, grad[:, :, :3], weight)


def test_under_autocast_a_network_is_what_it_is_with_torchs_convolutions(kernels: None) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 8, 3, padding=1, bias=False), nn.Conv2d(8, 4, 1)
    ).to(memory_format=torch.channels_last)
    images = torch.randn(3, 3, 7, 6).contiguous(memory_format=torch.channels_last)

    def found() -> list[Tensor]:
        network.zero_grad()
        x = images.clone().requires_grad_()
        with Autocast(torch.device("cpu"), enabled=True):
            out = network(x)
        out.float().square().sum().backward()
        assert x.grad is not None
        assert x.grad.dtype == torch.float32
        return [out.float().detach(), x.grad, *(p.grad.clone() for p in network.parameters() if p.grad is not None)]

    compiled = found()
    with binding.using(None):
        expected = found()
    assert len(compiled) == len(expected) == 7
    for one, other in zip(compiled, expected, strict=True):
        assert (one - other).norm() <= 0.02 * other.norm()
    with Autocast(torch.device("cpu"), enabled=False):
        assert network(images).dtype == torch.float32


def test_second_derivatives_under_autocast_are_torchs(kernels: None) -> None:
    x, weight, _ = operands((2, 16, 16, 5, 5))

    def found() -> Tensor:
        leaf = x.float().requires_grad_()
        with Autocast(torch.device("cpu"), enabled=True):
            out = torch.conv2d(leaf, weight.float(), None, (1, 1), (1, 1), (1, 1), 1)
        (first,) = torch.autograd.grad(out.float().square().sum(), leaf, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), leaf)
        return second

    compiled = found()
    with binding.using(None):
        expected = found()
    assert (compiled - expected).norm() <= 0.02 * expected.norm()


@pytest.mark.parametrize("channels", [16, 64])
def test_a_students_convolution_on_its_grids_keeps_the_sums_that_bfloat16_would_round(
    kernels: None, channels: int
) -> None:
    random = torch.Generator().manual_seed(0)
    x = torch.rand(2, channels, 5, 6, generator=random).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(16, channels, 3, 3, generator=random).contiguous(memory_format=torch.channels_last)
    grad = torch.randn(2, 16, 5, 6, generator=random).contiguous(memory_format=torch.channels_last)

    def found(*, on_grids: bool) -> list[Tensor]:
        leaves = [x.clone().requires_grad_(), weight.clone().requires_grad_()]
        scale, shift = integral_shift(torch.tensor(0.0), torch.tensor(1.0), 4)
        rounded, codes = quantize_with_codes(leaves[0], scale, shift, 4)
        grid = quantize_weight(leaves[1], 4, rounding="integral_shift", symmetric=False, per_channel=True)
        operands = (on_grid(rounded, scale, codes), grid, None, (1, 1), (1, 1), (1, 1), 1)
        if on_grids:
            with GridConvolutions():
                out = torch.conv2d(*operands)
        else:
            out = torch.conv2d(*operands)
        out.backward(grad)
        return [out.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]

    compiled, plain = found(on_grids=True), found(on_grids=False)
    assert len(compiled) == 3
    torch.testing.assert_close(compiled[0], plain[0], rtol=1e-5, atol=1e-4)
    for one, other in zip(compiled[1:], plain[1:], strict=True):
        assert (one - other).norm() <= 0.01 * other.norm()


def test_a_teachers_convolutions_are_the_kernels(kernels: None, monkeypatch: pytest.MonkeyPatch) -> None:
    network = CifarResNet(20).eval().to(memory_format=torch.channels_last)
    calls: list[tuple[int, ...]] = []
    plain = convolve.convolved

    def counted(x: Tensor, weight: Tensor, **options: object) -> Tensor:
        calls.append(tuple(weight.shape[:2]))
        return plain(x, weight, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(convolve, "convolved", counted)
    images = torch.randn(1, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    with torch.no_grad(), Autocast(torch.device("cpu"), enabled=True):
        network(images)
    # All but the two with a stride.
    assert sorted(calls) == sorted([(16, 3)] + [(16, 16)] * 6 + [(32, 32)] * 5 + [(64, 64)] * 5)


def test_transformations_and_tracers_are_left_to_torch(kernels: None) -> None:
    x, weight, _ = operands((2, 16, 16, 5, 5), torch.float32)
    numbers = (None, (1, 1), (1, 1), (1, 1), 1)

    def total(weight: Tensor) -> Tensor:
        return torch.conv2d(x, weight, *numbers).float().square().sum()

    def one_image(image: Tensor) -> Tensor:
        return torch.conv2d(image[None], weight, *numbers)

    with Autocast(torch.device("cpu"), enabled=True):
        found = torch.func.grad(total)(weight)
        mapped = torch.func.vmap(one_image)(x)
        traced = torch.fx.symbolic_trace(nn.Conv2d(16, 16, 3, padding=1))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(found, torch.func.grad(total)(weight))
        assert torch.equal(mapped, torch.func.vmap(one_image)(x))
    assert traced(x).shape == x.shape


def test_autocast_can_be_entered_again_and_within_itself() -> None:
    auto = Autocast(torch.device("cpu"), enabled=True)
    for _ in range(2):
        with auto:
            with auto:
                assert torch.is_autocast_enabled("cpu")
            assert torch.is_autocast_enabled("cpu")
        assert not torch.is_autocast_enabled("cpu")


def test_another_type_of_autocast_is_left_alone(kernels: None) -> None:
    x, weight, _ = operands((2, 16, 16, 5, 5), torch.float32)
    with Autocast(torch.device("cpu"), enabled=True), torch.autocast("cpu", torch.float16):
        assert torch.conv2d(x, weight, None, (1, 1), (1, 1), (1, 1), 1).dtype == torch.float16


def test_sums_over_many_slices_of_positions_are_whole(kernels: None) -> None:
    x, weight, grad = operands((1, 1, 1, 130, 64))
    found = convolve.weight_gradient(x, grad, weight)
    torch.testing.assert_close(found.double(), exact(x, weight, grad)[2], rtol=1e-5, atol=1e-4)
