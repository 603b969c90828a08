from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from dfqbench.synth import Generator
from dfqbench.synth.sub_pixel import merge_phases, sub_pixel_conv, sub_pixel_norm


@pytest.mark.parametrize("shape", [(2, 3, 4, 4), (1, 2, 1, 1), (3, 1, 2, 5)])
@pytest.mark.parametrize("channels_last", [False, True])
def test_equals_upsampling_then_convolution(shape: tuple[int, ...], channels_last: bool) -> None:
    random = torch.Generator().manual_seed(2)
    x = torch.randn(shape, generator=random, dtype=torch.float64, requires_grad=True)
    weight = torch.randn((5, shape[1], 3, 3), generator=random, dtype=torch.float64, requires_grad=True)
    given = x.to(memory_format=torch.channels_last) if channels_last else x
    actual = merge_phases(sub_pixel_conv(given, weight))
    expected = F.conv2d(F.interpolate(x, scale_factor=2, mode="nearest"), weight, padding=1)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    upstream = torch.randn(expected.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    ours = torch.autograd.grad(actual, (x, weight), upstream)
    theirs = torch.autograd.grad(expected, (x, weight), upstream)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("size", [8, 28, 30])
@pytest.mark.parametrize("embedding", [False, True])
def test_the_generator_makes_the_same_images_either_way(size: int, embedding: bool) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(4)
        plain = Generator((3, size, size), 5, latent=6, embedding=embedding)
        b = Generator((3, size, size), 5, latent=6, embedding=embedding, sub_pixel=True)
        noise, labels = torch.randn(7, 6), torch.arange(7) % 5
    b.load_state_dict(plain.state_dict())
    torch.testing.assert_close(b(noise, labels), plain(noise, labels), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("samples", [1, 3])
def test_norm_is_batchnorm_and_leaky_relu_of_the_merged_map(samples: int) -> None:
    random = torch.Generator().manual_seed(5)
    phases = torch.randn((3, 8, 4, 5), generator=random, dtype=torch.float64, requires_grad=True)
    scale, shift = (torch.randn((samples, 2), generator=random, dtype=torch.float64) for _ in range(2))
    out = sub_pixel_norm(phases, scale, shift, 0.1, 0.2)
    merged = F.batch_norm(merge_phases(phases), None, None, training=True, eps=0.1)
    expected = F.leaky_relu(merged * scale[:, :, None, None] + shift[:, :, None, None], 0.2)
    torch.testing.assert_close(out, expected)
    upstream = torch.randn(expected.shape, generator=random, dtype=torch.float64)
    torch.testing.assert_close(*(torch.autograd.grad(a, phases, upstream)[0] for a in (out, expected)))
