from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dfqbench.synth import BatchNormStatistics, bns_loss
from dfqbench.synth.attention import batch_statistics
from dfqbench.synth.watched import can_watch, watched_batchnorm
from dfqbench.testing.toys import toy_network


def _layer(dtype: torch.dtype = torch.float64) -> nn.BatchNorm2d:
    layer = nn.BatchNorm2d(3, eps=0.01).to(dtype).eval().requires_grad_(requires_grad=False)
    with torch.no_grad():
        for tensor, values in (
            (layer.weight, [0.5, -2.0, 0.0]),
            (layer.bias, [1.0, 0.0, 3.0]),
            (layer.running_mean, [0.1, -4.0, 7.0]),
            (layer.running_var, [2.0, 0.3, 1.0]),
        ):
            assert tensor is not None
            tensor.copy_(torch.tensor(values))
    return layer


def _images(dtype: torch.dtype = torch.float64) -> Tensor:
    return (torch.randn((4, 3, 5, 6), generator=torch.Generator().manual_seed(1)) * 2 + 1).to(dtype)


@pytest.mark.parametrize("channels_last", [False, True])
def test_equals_layer_and_moments(channels_last: bool) -> None:
    layer, x = _layer(), _images()
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    out, moments = watched_batchnorm(x, layer)
    torch.testing.assert_close(out, layer(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(moments.mean, x.mean((2, 3)), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(moments.var, x.var((2, 3), correction=0), rtol=1e-12, atol=1e-12)


def test_gradients_are_those_of_finite_differences() -> None:
    layer = _layer()

    def everything(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        out, moments = watched_batchnorm(x, layer)
        return out, moments.mean, moments.var

    assert torch.autograd.gradcheck(everything, (_images()[:2, :, :2, :2].clone().requires_grad_(),))


def test_a_narrow_map_has_wide_moments() -> None:
    layer, x = _layer(torch.float32), _images(torch.bfloat16).requires_grad_()
    out, moments = watched_batchnorm(x, layer)
    assert (out.dtype, moments.mean.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(moments.var, x.float().var((2, 3), correction=0))
    (out.float().sum() + moments.var.sum()).backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.bfloat16


def test_watching_fused_gives_the_same_loss_and_gradient() -> None:
    network = toy_network()
    losses: list[Tensor] = []
    gradients: list[Tensor] = []
    for fused in (False, True):
        x = torch.randn((5, 3, 8, 8), generator=torch.Generator().manual_seed(1)).requires_grad_()
        with BatchNormStatistics(network, fused=fused) as watch:
            logits = network(x)
            loss = bns_loss(watch.last) + logits.square().mean()
        losses.append(loss)
        gradients += torch.autograd.grad(loss, x)
        assert not any("forward" in vars(module) for module in network.modules())
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-7)


def test_other_layers_and_modes_are_left_to_themselves() -> None:
    class Own(nn.BatchNorm2d):
        pass

    layer, x = _layer(), _images()
    assert can_watch(layer, x)
    assert not can_watch(Own(3).eval().requires_grad_(requires_grad=False), x)
    assert not can_watch(nn.BatchNorm2d(3).eval(), x)
    assert not can_watch(nn.BatchNorm2d(3, affine=False).eval(), x)
    network = toy_network()
    images = torch.randn((5, 3, 8, 8), generator=torch.Generator().manual_seed(1))
    with batch_statistics(network):
        wanted = network(images)
    with BatchNormStatistics(network, fused=True) as watch:
        network(images)
        before = watch.last.per_sample.mean
        with batch_statistics(network), watch.paused():
            found = network(images)
        assert torch.equal(watch.last.per_sample.mean, before)
    assert torch.equal(found, wanted)
