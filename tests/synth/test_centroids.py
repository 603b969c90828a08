from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dfqbench.synth import (
    BatchNormStatistics,
    ClassCentroids,
    Moments,
    cluster_loss,
    deep_moments,
    deep_start,
    released_diversity_term,
)


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("layers", "start"), [(20, 8), (21, 9), (19, 8), (2, 0), (1, 0), (5, 1)])
def test_deep_layers(layers: int, start: int) -> None:
    # 8 of 20 on ResNet-18, 9 of 21 on ResNet-20; 11 deep layers of the 19 with option-A shortcuts (methods.md 0.5).
    assert deep_start(layers) == start


def test_deep_moments_average_over_layers_and_channels() -> None:
    network = nn.Sequential(*(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)) for _ in range(6))).eval()
    images = torch.randn((4, 3, 3, 3), generator=torch.Generator().manual_seed(0))
    with BatchNormStatistics(network) as recorder, torch.no_grad():
        network(images)
        moments, share = deep_moments(recorder.last)
        assert moments.mean.shape == (4, 15)
        assert float(share.sum()) == pytest.approx(1.0)
        torch.testing.assert_close(moments.var[:, :3], recorder.last.layers[1].moments.var)


def test_centroids_follow_the_correct_samples() -> None:
    centroids = ClassCentroids(3, 2, torch.device("cpu"), decay=0.8)
    labels = torch.tensor([0, 0, 1, 0, 1])
    correct = torch.tensor([True, True, False, False, False])
    first, second = _random(5, 2).float(), _random(5, 2, seed=1).float()
    centroids.collect(Moments(first, first.square()), labels, correct)
    assert not centroids.known.any()
    centroids.update()
    assert centroids.known.tolist() == [True, False, False]
    torch.testing.assert_close(centroids.mean[0], (first[0] + first[1]) / 2)  # the first estimate is taken whole
    assert torch.equal(centroids.mean[1], torch.zeros(2))
    centroids.collect(Moments(second, second.square()), labels, torch.ones(5, dtype=torch.bool))
    centroids.update()
    estimate = (second[0] + second[1] + second[3]) / 3
    torch.testing.assert_close(centroids.mean[0], 0.8 * (first[0] + first[1]) / 2 + 0.2 * estimate)
    torch.testing.assert_close(centroids.var[1], (second[2].square() + second[4].square()) / 2)
    before = centroids.mean.clone()
    centroids.update()  # an epoch without samples moves nothing
    assert torch.equal(before, centroids.mean)


def test_cluster_loss_is_the_formula() -> None:
    moments = Moments(_random(3, 5), _random(3, 5, seed=1))
    centroids = Moments(_random(3, 5, seed=2), _random(3, 5, seed=3))
    noise = Moments(_random(3, 5, seed=4) * 0.03, _random(3, 5, seed=5) * 0.05)
    share = torch.tensor([0.25, 0.25, 1 / 6, 1 / 6, 1 / 6], dtype=torch.float64)  # layers of two and three channels
    valid = torch.tensor([True, False, True])
    expected = 0.0
    for n in (0, 2):
        for columns in (range(2), range(2, 5)):
            for x, y, e in ((moments.mean, centroids.mean, noise.mean), (moments.var, centroids.var, noise.var)):
                gaps = [float(x[n, c] - y[n, c] - e[n, c]) ** 2 for c in columns]
                expected += sum(gaps) / len(gaps) / 2 / 2
    assert float(cluster_loss(moments, share, centroids, valid, noise)) == pytest.approx(expected)
    none = torch.zeros(3, dtype=torch.bool)
    assert float(cluster_loss(moments, share, centroids, none, noise)) == 0.0


def test_the_perturbation_has_a_gradient_and_the_released_term_has_none() -> None:
    at_centroid = _random(2, 4).requires_grad_()
    expected = Moments(at_centroid.detach(), at_centroid.detach())
    noise = Moments(torch.full((2, 4), 0.03).double(), torch.zeros(2, 4).double())
    valid, share = torch.ones(2, dtype=torch.bool), torch.full((4,), 0.25).double()
    loss = cluster_loss(Moments(at_centroid, at_centroid.detach()), share, expected, valid, noise)
    (gradient,) = torch.autograd.grad(loss, at_centroid)
    assert (gradient != 0).all()
    released = released_diversity_term(at_centroid, noise.mean)
    assert float(released.detach()) == pytest.approx(0.03**2)
    (gradient,) = torch.autograd.grad(released, at_centroid)
    assert torch.equal(gradient, torch.zeros_like(gradient))


def test_cluster_loss_gradient() -> None:
    mean, var = _random(2, 3).requires_grad_(), _random(2, 3, seed=1).requires_grad_()
    expected = Moments(_random(2, 3, seed=2), _random(2, 3, seed=3))
    share, valid = torch.full((3,), 1 / 3).double(), torch.tensor([True, True])
    assert torch.autograd.gradcheck(lambda m, v: cluster_loss(Moments(m, v), share, expected, valid), (mean, var))
