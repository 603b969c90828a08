"""A generator's BatchNorm and leaky ReLU on phases, against torch's operations on the woven map."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dfqbench.native import binding, woven
from dfqbench.synth.generators import Generator
from dfqbench.synth.upsampling import weave
from dfqbench.synth.woven import woven_norm

SIZES = ((3, 8, 2, 2), (2, 16, 5, 7), (4, 24, 9, 3))
"""Samples, channels, rows and columns before they are doubled."""


def phases_of(size: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Far from zero in some channels; what has no place in the woven map is far from all."""
    samples, channels, height, width = size
    random = torch.Generator().manual_seed(0)
    x = torch.randn(samples, 4 * channels, height + 1, width + 1, generator=random)
    x = x + 10 * torch.randn(channels, generator=random).repeat(4).view(1, -1, 1, 1)
    for phase in range(4):
        a, b = divmod(phase, 2)
        part = x[:, phase * channels : (phase + 1) * channels]
        part[:, :, 0 if a else height] = 1e4
        part[:, :, :, 0 if b else width] = -1e4
    return x.to(dtype).contiguous(memory_format=torch.channels_last)


def plainly(phases: Tensor, scale: Tensor, shift: Tensor, eps: float, slope: float) -> Tensor:
    """What `woven_norm` computes, one operation after the other."""
    normed = F.batch_norm(weave(phases), None, None, training=True, eps=eps)
    return F.leaky_relu(torch.addcmul(shift[..., None, None], normed, scale[..., None, None]), slope)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_and_gradients_are_torchs(in_use: str, size: tuple[int, ...], dtype: torch.dtype) -> None:
    samples, channels, height, width = size
    random = torch.Generator().manual_seed(1)
    scale, shift = torch.randn(2, samples, channels, generator=random)
    grad = torch.randn(samples, channels, 2 * height, 2 * width, generator=random).to(dtype)

    def found(of: Callable[..., Tensor], parameters: torch.dtype, maps: torch.dtype) -> list[Tensor]:
        leaves = [phases_of(size, dtype).to(maps), scale.to(parameters), shift.to(parameters)]
        leaves = [leaf.clone().requires_grad_() for leaf in leaves]
        out = of(*leaves, 0.8, 0.2)
        out.backward(grad.to(maps))
        grads = [leaf.grad for leaf in leaves if leaf.grad is not None]
        assert len(grads) == 3
        return [out.detach(), *grads]

    compiled, expected = found(woven_norm, torch.float32, dtype), found(plainly, torch.float64, torch.float64)
    assert compiled[0].dtype == compiled[1].dtype == dtype
    assert compiled[0].is_contiguous(memory_format=torch.channels_last)
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    for one, other in zip(compiled, expected, strict=True):
        close = torch.isclose(one.double(), other, rtol=tolerance, atol=tolerance)
        # Where the leaky ReLU's input is 0 but for rounding, its slope may be the other one.
        assert int((~close).sum()) <= 2


def test_what_has_no_place_gets_no_gradient(in_use: str) -> None:
    phases = phases_of((2, 8, 3, 3), torch.float32).requires_grad_()
    one, nothing = torch.ones(2, 8), torch.zeros(2, 8)
    woven_norm(phases, one, nothing, 1e-5, 0.2).square().sum().backward()
    places = torch.zeros(2, 32, 4, 4).requires_grad_()
    weave(places).sum().backward()
    assert phases.grad is not None
    assert places.grad is not None
    assert torch.equal(phases.grad != 0, places.grad != 0)


@pytest.mark.parametrize("embedding", [True, False])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_generator_learns_as_in_torch(in_use: str, embedding: bool, precision: str) -> None:
    torch.manual_seed(0)
    generator = Generator((3, 16, 16), 10, embedding=embedding, phases=True)
    count = 3 if in_use == "kernels" else 12  # interpreting takes its time
    noise, labels = torch.randn(count, 100), torch.arange(count) % 10
    wanted = torch.randn(count, 3, 16, 16)

    def found() -> list[Tensor]:
        generator.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            images = generator(noise, labels)
        (images - wanted).square().mean().backward()
        return [images.detach(), *(p.grad.clone() for p in generator.parameters() if p.grad is not None)]

    compiled = found()
    with binding.using(None):
        expected = found()
    assert len(compiled) == len(expected) > 10
    tolerance = 1e-3 if precision == "float32" else 0.05
    scale = max(float(grad.norm()) for grad in expected[1:])
    assert float((compiled[0] - expected[0]).norm()) < tolerance * float(expected[0].norm())
    for one, other in zip(compiled[1:], expected[1:], strict=True):
        # The gradient of a bias before BatchNorm is 0 but for rounding.
        assert float((one - other).norm()) < tolerance * max(float(other.norm()), 0.01 * scale)


def test_whoever_listens_to_a_generators_norm_hears_it(in_use: str) -> None:
    generator = Generator((3, 16, 16), 10, phases=True)
    heard = []
    generator.norm2.norm.register_forward_hook(lambda *_: heard.append(1))
    generator(torch.randn(4, 100), torch.arange(4))
    assert heard == [1]


def test_operands_of_another_size_are_refused(in_use: str) -> None:
    phases = phases_of((2, 8, 3, 3), torch.float32)
    one = torch.ones(2, 8)
    with pytest.raises(ValueError, match="does not fit"):
        woven.forward(phases, (one, one[0]), 0.2)
    with pytest.raises(ValueError, match="does not fit"):
        woven.sums(phases, torch.zeros(2, 8, 6, 5), (one, one), one[0], 0.2)
    with pytest.raises(ValueError, match="does not fit"):
        woven.forward(phases[:, :30], (one, one), 0.2)


def test_the_number_of_threads_changes_nothing(library: str) -> None:
    phases = phases_of((5, 16, 6, 6), torch.float32)
    one = torch.ones(5, 16)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            out = woven.forward(phases, (one, one), 0.2)
            sums = woven.sums(phases, out, (one, one), one[0], 0.2)
            back = woven.backward(phases, out, (one, one), (one[0], one[0]), 0.2)
            found.append((*woven.moments(phases), out, *sums, back))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(one, two) for one, two in zip(found[0], other, strict=True))
