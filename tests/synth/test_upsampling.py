from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dfqbench.synth import Generator
from dfqbench.synth.upsampling import phases_of_conv, weave


def upsampled_conv(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return weave(phases_of_conv(x, weight, bias))


def _reference(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.conv2d(F.interpolate(x, scale_factor=2, mode="nearest"), weight, bias, padding=1)


def _tensors(shape: tuple[int, ...], outputs: int) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(2)
    x = torch.randn(shape, generator=random, dtype=torch.float64, requires_grad=True)
    weight = torch.randn((outputs, shape[1], 3, 3), generator=random, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(outputs, generator=random, dtype=torch.float64, requires_grad=True)
    return x, weight, bias


@pytest.mark.parametrize("shape", [(2, 3, 4, 4), (1, 2, 1, 1), (3, 1, 2, 5)])
@pytest.mark.parametrize("channels_last", [False, True])
def test_equals_upsampling_then_convolution(shape: tuple[int, ...], channels_last: bool) -> None:
    x, weight, bias = _tensors(shape, 5)
    given = x.to(memory_format=torch.channels_last) if channels_last else x
    found, wanted = upsampled_conv(given, weight, bias), _reference(x, weight, bias)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    upstream = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    ours = torch.autograd.grad(found, (x, weight, bias), upstream)
    theirs = torch.autograd.grad(wanted, (x, weight, bias), upstream)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


def test_gradients_are_those_of_finite_differences() -> None:
    assert torch.autograd.gradcheck(upsampled_conv, _tensors((2, 2, 2, 3), 2))


@pytest.mark.parametrize("size", [8, 28, 30])
@pytest.mark.parametrize("embedding", [False, True])
def test_the_generator_makes_the_same_images_either_way(size: int, embedding: bool) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(4)
        plain = Generator((3, size, size), 5, latent=6, embedding=embedding)
        other = Generator((3, size, size), 5, latent=6, embedding=embedding, phases=True)
        noise, labels = torch.randn(7, 6), torch.arange(7) % 5
    other.load_state_dict(plain.state_dict())
    torch.testing.assert_close(other(noise, labels), plain(noise, labels), rtol=1e-4, atol=1e-4)
