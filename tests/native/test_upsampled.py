"""Upsampled convolutions by nine products, against torch's operations in double precision."""

from __future__ import annotations

import pytest
import torch
from dfqbench.native import binding, upsampled
from dfqbench.synth.upsampling import phases_of_conv, weave
from torch import Tensor
from torch.nn import functional as F

SIZES = (
    (3, 16, 32, 3, 5),
    (5, 32, 16, 1, 2),
    (2, 48, 16, 1, 1),
    (11, 16, 48, 8, 8),
    (3, 144, 16, 17, 16),
    (2, 16, 32, 19, 70),
)
"""Samples, channels of input and output, height and width: several images at once, one, and bands of one."""


def operands(size: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Small map, weight and gradient at the convolution's output."""
    samples, channels, outer, height, width = size
    random = torch.Generator().manual_seed(0)
    shapes = (samples, channels, height, width), (outer, channels, 3, 3), (samples, outer, 2 * height, 2 * width)
    x, weight, grad = (
        torch.randn(shape, generator=random).contiguous(memory_format=torch.channels_last) for shape in shapes
    )
    return x, weight, grad


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("order", [torch.channels_last, torch.contiguous_format])
def test_the_convolution_and_its_gradients_are_those_of_double_precision(
    library: str, size: tuple[int, ...], order: torch.memory_format
) -> None:
    x, weight, grad = operands(size)
    leaves = [x.clone().requires_grad_(), weight.clone(memory_format=order).requires_grad_()]
    assert upsampled.fits(*leaves)
    out = weave(phases_of_conv(*leaves))
    out.backward(grad)
    twins = [x.double().requires_grad_(), weight.double().requires_grad_()]
    wanted = F.conv2d(F.interpolate(twins[0], scale_factor=2, mode="nearest"), twins[1], padding=1)
    wanted.backward(grad.double())
    pairs = [(out, wanted), *((one.grad, other.grad) for one, other in zip(leaves, twins, strict=True))]
    for one, other in pairs:
        assert one is not None
        assert other is not None
        assert (one.double() - other).abs().max() <= 2e-6 * other.abs().max()


def test_what_has_no_place_in_the_map_is_zero_and_gives_no_gradient(library: str) -> None:
    x, weight, _ = operands((2, 16, 16, 3, 4))
    leaves = [x.clone().requires_grad_(), weight.clone().requires_grad_()]
    phases = phases_of_conv(*leaves)
    seen = torch.autograd.functional.vjp(weave, phases, torch.ones(2, 16, 6, 8))[1]
    assert 0 < int((seen == 0).sum()) < seen.numel()
    assert torch.equal(phases[seen == 0], torch.zeros_like(phases[seen == 0]))
    inside = torch.autograd.grad(phases, leaves, seen, retain_graph=True)
    everywhere = torch.autograd.grad(phases, leaves, torch.ones_like(seen))
    assert all(torch.equal(one, other) for one, other in zip(inside, everywhere, strict=True))


def test_the_number_of_threads_changes_nothing(library: str) -> None:
    x, weight, _ = operands((130, 16, 32, 6, 5))
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            leaves = [x.clone().requires_grad_(), weight.clone().requires_grad_()]
            out = phases_of_conv(*leaves)
            out.square().sum().backward()
            found.append([out.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)])
    finally:
        torch.set_num_threads(before)
    for others in found[1:]:
        assert len(others) == 3
        assert all(torch.equal(one, other) for one, other in zip(found[0], others, strict=True))


def test_what_does_not_fit_is_computed_as_one_convolution(library: str) -> None:
    x, weight, _ = operands((2, 16, 16, 3, 4))
    assert upsampled.fits(x, weight)
    assert not upsampled.fits(x.contiguous(), weight)
    assert not upsampled.fits(x.double(), weight.double())
    assert not upsampled.fits(x, weight[:3])
    assert not upsampled.fits(x[:0], weight)
    with torch.autocast("cpu", torch.bfloat16):
        assert not upsampled.fits(x, weight)
        assert phases_of_conv(x, weight).dtype == torch.bfloat16
    with binding.using(None):
        assert not upsampled.fits(x, weight)
    found = torch.func.grad(lambda weight: phases_of_conv(x, weight).square().sum())(weight)
    assert found.shape == weight.shape
    assert not upsampled.fits(x, weight[:0])


def test_operands_of_another_size_are_refused(library: str) -> None:
    x, _, _ = operands((2, 16, 16, 3, 4))
    sums = torch.zeros(9, 32, 16)
    with pytest.raises(ValueError, match="do not fit"):
        upsampled.forward(x, sums[:8])
    with pytest.raises(ValueError, match="do not fit"):
        upsampled.forward(x, sums[:, :, :8])
    with pytest.raises(ValueError, match="does not fit"):
        upsampled.backward(x, sums, torch.zeros(2, 128, 4, 4))
