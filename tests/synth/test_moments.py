from __future__ import annotations

import pytest
import torch

from dfqbench.synth import batch_moments, sample_moments


@pytest.fixture
def noise() -> torch.Generator:
    return torch.Generator().manual_seed(3)


@pytest.mark.parametrize("shape", [(5, 3, 4, 6), (5, 3, 1, 1), (1, 3, 2, 2), (5, 3), (5, 3, 7), (2, 3, 2, 2, 2)])
@pytest.mark.parametrize("channels_last", [False, True])
def test_sample_moments_match_loops(shape: tuple[int, ...], channels_last: bool, noise: torch.Generator) -> None:
    x = torch.randn(shape, generator=noise, dtype=torch.float64) * 2 + 5
    if channels_last and len(shape) == 4:
        x = x.to(memory_format=torch.channels_last)
    actual = sample_moments(x)
    for n in range(shape[0]):
        for c in range(shape[1]):
            values = x[n, c].reshape(-1).tolist()
            mean = sum(values) / len(values)
            var = sum((v - mean) ** 2 for v in values) / len(values)
            assert float(actual.mean[n, c]) == pytest.approx(mean, rel=1e-12)
            assert float(actual.var[n, c]) == pytest.approx(var, rel=1e-10, abs=1e-12)


@pytest.mark.parametrize("shape", [(3, 2, 3, 2), (2, 2, 1, 1), (1, 2, 2, 2), (3, 2)])
def test_sample_moments_gradient(shape: tuple[int, ...], noise: torch.Generator) -> None:
    x = torch.randn(shape, generator=noise, dtype=torch.float64, requires_grad=True)

    def both(values: torch.Tensor) -> torch.Tensor:
        moments = sample_moments(values)
        return torch.cat((moments.mean, moments.var), 1)

    assert torch.autograd.gradcheck(both, (x,))


def test_moments_of_a_narrow_map_are_float32(noise: torch.Generator) -> None:
    x = torch.randn((4, 3, 5, 6), generator=noise).to(torch.bfloat16).requires_grad_()
    moments = sample_moments(x)
    assert moments.mean.dtype == moments.var.dtype == torch.float32
    torch.testing.assert_close(moments.var, x.detach().float().var((2, 3), correction=0))
    assert torch.autograd.grad(moments.var.sum(), x)[0].dtype == torch.bfloat16


def test_gradient_keeps_the_memory_format(noise: torch.Generator) -> None:
    x = torch.randn((2, 4, 3, 3), generator=noise).to(memory_format=torch.channels_last).requires_grad_()
    (gradient,) = torch.autograd.grad(sample_moments(x).var.sum(), x)
    assert gradient.is_contiguous(memory_format=torch.channels_last)


def test_batch_moments_are_those_of_all_samples(noise: torch.Generator) -> None:
    x = torch.randn((6, 3, 4, 4), generator=noise, dtype=torch.float64) + torch.arange(6.0).view(-1, 1, 1, 1)
    actual = batch_moments(sample_moments(x))
    torch.testing.assert_close(actual.mean, x.mean((0, 2, 3)))
    torch.testing.assert_close(actual.var, x.var((0, 2, 3), correction=0))
