from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from dfqbench.synth import (
    BatchNormStatistics,
    Moments,
    batch_moments,
    bns_distance_loss,
    bns_loss,
    positions,
    sample_moments,
    unbiased,
    zeroq_loss,
)
from dfqbench.testing.toys import toy_network


def _network(size: int = 8) -> nn.Sequential:
    return toy_network(size=size).double()


def _images(count: int = 3, size: int = 8) -> Tensor:
    return torch.randn((count, 3, size, size), generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def _batchnorm_inputs(network: nn.Sequential, images: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Inputs, running means and variances of BatchNorm layers, by another path than hooks: one layer after another."""
    actual, x = [], images
    for module in network:
        if isinstance(module, nn.BatchNorm2d):
            actual.append((x, module.get_buffer("running_mean"), module.get_buffer("running_var")))
        x = module(x)
    return actual


def _variance(values: Tensor, correction: int) -> Tensor:
    """From the definition, not torch.var."""
    count = values.numel()
    centred = values - values.sum() / count
    return (centred * centred).sum() / (count - correction if count > 1 else count)


@pytest.mark.parametrize(("count", "size"), [(3, 8), (1, 8), (3, 2)])
def test_bns_loss_is_the_formula(count: int, size: int) -> None:
    network, images = _network(size), _images(count, size)
    expected = 0.0
    inputs = _batchnorm_inputs(network, images)
    for x, mean, var in inputs:
        for c in range(x.shape[1]):
            values = x[:, c].reshape(-1)
            mean_gap = float(values.sum() / values.numel() - mean[c])
            var_gap = float(_variance(values, 0) - var[c])
            expected += (mean_gap**2 + var_gap**2) / x.shape[1] / len(inputs)
    with BatchNormStatistics(network) as recorder:
        network(images)
        assert float(bns_loss(recorder.last)) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize(("count", "size"), [(3, 8), (1, 8), (3, 2)])
@pytest.mark.parametrize("norm", ["l2", "mse"])
def test_bns_distance_loss_is_the_formula(count: int, size: int, norm: Literal["l2", "mse"]) -> None:
    network, images, eps = _network(size), _images(count, size), 1e-6
    expected = 0.0
    inputs = _batchnorm_inputs(network, images)
    for x, mean, var in inputs:
        squares = [0.0, 0.0]
        for c in range(x.shape[1]):
            values = x[:, c].reshape(-1)
            squares[0] += float(values.sum() / values.numel() - mean[c]) ** 2
            squares[1] += (float(_variance(values, 0) + eps) ** 0.5 - float(var[c] + eps) ** 0.5) ** 2
        gaps = [square / x.shape[1] if norm == "mse" else square**0.5 for square in squares]
        expected += sum(gaps) / len(inputs)
    with BatchNormStatistics(network) as recorder:
        network(images)
        assert float(bns_distance_loss(recorder.last, norm, eps)) == pytest.approx(expected, rel=1e-10)


def test_bns_distance_loss_has_a_finite_gradient_where_statistics_are_equal() -> None:
    network, images = nn.BatchNorm2d(3).double().eval(), _images().requires_grad_()
    equal = batch_moments(sample_moments(images.detach()))
    network.get_buffer("running_mean").copy_(equal.mean)
    network.get_buffer("running_var").copy_(equal.var)
    with BatchNormStatistics(network) as recorder:
        network(images)
        loss = bns_distance_loss(recorder.last)
    assert float(loss.detach()) == 0.0
    assert torch.equal(torch.autograd.grad(loss, images)[0], torch.zeros_like(images))


@pytest.mark.parametrize(("count", "size"), [(3, 8), (1, 8), (3, 2)])
def test_zeroq_loss_is_the_formula(count: int, size: int) -> None:
    network, images = _network(size), _images(count, size)
    target = Moments(torch.tensor([0.1, 0.0, -0.2]).double(), torch.tensor([1.0, 0.5, 2.0]).double())
    expected, eps = 0.0, 1e-6
    for n in range(count):
        for c in range(3):
            values = images[n, c].reshape(-1)
            expected += float(values.mean() - target.mean[c]) ** 2
            expected += (float(_variance(values, 1) + eps) ** 0.5 - float(target.var[c]) ** 0.5) ** 2
        for x, mean, var in _batchnorm_inputs(network, images):
            for c in range(x.shape[1]):
                values = x[n, c].reshape(-1)
                expected += float(values.mean() - mean[c]) ** 2
                expected += (float(_variance(values, 1) + eps) ** 0.5 - float(var[c] + eps) ** 0.5) ** 2
    with BatchNormStatistics(network) as recorder:
        network(images)
        image = unbiased(sample_moments(images), positions(images))
        assert float(zeroq_loss(recorder.last, image, target)) == pytest.approx(expected / count, rel=1e-10)


@pytest.mark.parametrize("loss_name", ["batch", "distance", "sample"])
def test_gradient_reaches_the_images(loss_name: str) -> None:
    network, images = _network(4), _images(2, 4).requires_grad_()

    def loss(x: Tensor) -> Tensor:
        with BatchNormStatistics(network) as recorder:
            network(x)
            if loss_name == "batch":
                return bns_loss(recorder.last)
            if loss_name == "distance":
                return bns_distance_loss(recorder.last)
            image = unbiased(sample_moments(x), positions(x))
            return zeroq_loss(recorder.last, image, Moments(torch.zeros(3).double(), torch.ones(3).double()))

    assert torch.autograd.gradcheck(loss, (images,))


def test_a_constant_image_has_a_finite_gradient() -> None:
    # sqrt at zero variance is where a gradient becomes infinite; the eps under the root prevents it.
    network = _network()
    images = torch.zeros((2, 3, 8, 8), dtype=torch.float64, requires_grad=True)
    with BatchNormStatistics(network) as recorder:
        network(images)
        image = unbiased(sample_moments(images), positions(images))
        target = Moments(torch.zeros(3).double(), torch.ones(3).double())
        loss = zeroq_loss(recorder.last, image, target)
    assert torch.isfinite(torch.autograd.grad(loss, images)[0]).all()
