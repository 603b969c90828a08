"""Moments of a batch and a generator's BatchNorm by the kernels for GPUs, interpreted here."""

from __future__ import annotations

import pytest
import torch
from dfqbench.native import batch, binding
from dfqbench.synth.upsampling import weave
from dfqbench.synth.woven import woven_norm
from torch import Tensor
from torch.nn import functional as F

from dfqbench.synth import Moments, batch_moments


@pytest.mark.parametrize("size", [(1, 5), (7, 16), (300, 3), (4, 130)])
def test_moments_of_a_batch_and_their_gradients_are_those_of_double_precision(
    kernels: None, size: tuple[int, int]
) -> None:
    random = torch.Generator().manual_seed(0)
    tables = 5 + torch.randn(size, generator=random), torch.rand(size, generator=random)

    def found(*, double: bool) -> list[Tensor]:
        leaves = [(one.double() if double else one.clone()).requires_grad_() for one in tables]
        moments = batch_moments(Moments(leaves[0], leaves[1]))
        assert batch.fits(leaves[0], leaves[1]) is not double
        (moments.mean.sin().sum() + moments.var.square().sum()).backward()
        return [moments.mean.detach(), moments.var.detach(), *(one.grad for one in leaves if one.grad is not None)]

    compiled, expected = found(double=False), found(double=True)
    assert len(compiled) == 4
    for one, other in zip(compiled, expected, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-6)


def test_second_derivatives_of_a_batchs_moments_are_torchs(kernels: None) -> None:
    tables = torch.randn(4, 3), torch.rand(4, 3)

    def found() -> list[Tensor]:
        leaves = [one.clone().requires_grad_() for one in tables]
        moments = batch_moments(Moments(leaves[0], leaves[1]))
        first = torch.autograd.grad((moments.var.square() + moments.mean.exp()).sum(), leaves, create_graph=True)
        second = torch.autograd.grad(torch.stack([one.square().sum() for one in first]).sum(), leaves)
        return [*first, *second]

    compiled = found()
    with binding.using(None):
        expected = found()
    for one, other in zip(compiled, expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("plain", [True, False])
def test_a_batchnorm_over_a_batch_has_torchs_values_and_gradients(in_use: str, rows: int, plain: bool) -> None:
    """Not `plain`: scale and shift in an order that the kernels for small tables do not take."""
    random = torch.Generator().manual_seed(0)
    phases = torch.randn(3, 4 * 8, 4, 3, generator=random).contiguous(memory_format=torch.channels_last)
    scale, shift = torch.rand(rows, 8, generator=random) + 0.5, torch.randn(rows, 8, generator=random)
    if not plain:
        scale, shift = (torch.stack((one, one), 2)[..., 0] for one in (scale, shift))
        assert not batch.fits(scale, shift)
    weight = torch.randn(3, 8, 6, 4, generator=random)

    def found(*, reference: bool) -> list[Tensor]:
        leaves = [one.detach().requires_grad_() for one in (phases, scale, shift)]
        if reference:
            normed = F.batch_norm(weave(leaves[0]), None, None, training=True, eps=0.8)
            out = F.leaky_relu(normed * leaves[1][..., None, None] + leaves[2][..., None, None], 0.2)
        else:
            out = woven_norm(leaves[0], leaves[1], leaves[2], 0.8, 0.2)
        (out * weight).sum().backward()
        return [out.detach(), *(one.grad for one in leaves if one.grad is not None)]

    compiled, expected = found(reference=False), found(reference=True)
    assert len(compiled) == 4
    for one, other in zip(compiled, expected, strict=True):
        assert one.shape == other.shape
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
