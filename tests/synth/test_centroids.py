from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dfqbench.models.cifar import CifarResNet
from dfqbench.synth import (
    BatchNormStatistics,
    ClassCentroids,
    ClassGroups,
    DeepStatistics,
    Moments,
    centroid_loss,
    deep_start,
    group_moments,
    sample_moments,
    spread_of,
)

CPU = torch.device("cpu")
ALL = torch.tensor([True, True, True])


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _groups(mean: Tensor, spread: Tensor, count: list[int] | None = None) -> ClassGroups:
    number = len(mean)
    return ClassGroups(mean, spread, torch.tensor(count or [1] * number, dtype=mean.dtype), torch.arange(number))


@pytest.mark.parametrize(
    ("layers", "half", "third"), [(20, 8, 13), (21, 9, 14), (19, 8, 12), (2, 0, 1), (1, 0, 0), (5, 1, 3)]
)
def test_deep_layers_follow_from_the_number_of_layers(layers: int, half: int, third: int) -> None:
    assert (deep_start(layers), deep_start(layers, "last_third")) == (half, third)


def test_eleven_of_19_layers_are_deep() -> None:
    # ResNet-20 with option-A shortcuts has 7, 6 and 6 layers of 16, 32 and 64 channels (methods.md 0.5).
    network = CifarResNet(20, 10, "A").eval()
    with BatchNormStatistics(network) as recorder, torch.no_grad():
        network(_random(2, 3, 8, 8).float())
        statistics = recorder.last
    deep, last_third = DeepStatistics.of(statistics), DeepStatistics.of(statistics, "last_third")
    assert deep.moments.mean.shape == (2, 5 * 32 + 6 * 64)
    assert last_third.moments.mean.shape == (2, 32 + 6 * 64)
    torch.testing.assert_close(deep.moments.var[:, :32], statistics.layers[8].moments.var)
    torch.testing.assert_close(deep.running.var[-64:], statistics.layers[18].running.var)
    for chosen, layers in ((deep, 11), (last_third, 7)):
        assert float(chosen.share.sum()) == pytest.approx(1.0)
        assert chosen.share[[0, -1]].tolist() == pytest.approx([1 / (32 * layers), 1 / (64 * layers)])


def test_group_moments_are_those_of_all_positions_of_a_class() -> None:
    images = _random(6, 2, 3, 3)
    labels = torch.tensor([2, 0, 2, 2, 0, 2])
    counted = torch.tensor([True, True, True, False, True, True])
    moments, count = group_moments(sample_moments(images), labels, counted, 4)
    assert count.tolist() == [2, 0, 3, 0]
    for label, members in ((0, [1, 4]), (2, [0, 2, 5])):
        torch.testing.assert_close(moments.mean[label], images[members].mean((0, 2, 3)))
        torch.testing.assert_close(moments.var[label], images[members].var((0, 2, 3), correction=0))
    assert torch.equal(moments.mean[[1, 3]], torch.zeros(2, 2, dtype=torch.float64))


def test_images_that_differ_cost_nothing_where_their_group_is_right() -> None:
    # Means -1 and 1, variances 1 and 3: as a group mean 0 and variance 2 + 1.
    samples = Moments(torch.tensor([[-1.0], [1.0]]), torch.tensor([[1.0], [3.0]]))
    pooled, count = group_moments(samples, torch.tensor([0, 0]), torch.tensor([True, True]), 1)
    groups = ClassGroups(pooled.mean, spread_of(pooled.var, "std"), count, torch.tensor([0]))
    expected = torch.tensor([[3 + 1e-6]]).sqrt()
    loss = centroid_loss(groups, torch.zeros(1, 1), expected, torch.tensor([True]), torch.ones(1))
    assert float(loss) == 0.0
    assert float(spread_of(pooled.var, "var")) == 3.0


def test_centroid_loss_is_the_formula() -> None:
    groups = _groups(_random(3, 5), _random(3, 5, seed=1))
    mean, spread = _random(3, 5, seed=2), _random(3, 5, seed=3)
    share = torch.tensor([0.25, 0.25, 1 / 6, 1 / 6, 1 / 6], dtype=torch.float64)  # layers of two and three channels
    expected = 0.0
    for c in (0, 2):
        for columns in (range(2), range(2, 5)):
            for x, y in ((groups.mean, mean), (groups.spread, spread)):
                gaps = [float(x[c, s] - y[c, s]) ** 2 for s in columns]
                expected += sum(gaps) / len(gaps) / 2 / 2
    valid = torch.tensor([True, False, True])
    assert float(centroid_loss(groups, mean, spread, valid, share)) == pytest.approx(expected)
    assert float(centroid_loss(groups, mean, spread, ~ALL, share)) == 0.0


def test_loss_has_a_gradient_and_no_nan_where_groups_are_empty() -> None:
    mean, var = _random(4, 3).requires_grad_(), _random(4, 3, seed=1).square().requires_grad_()
    labels, counted = torch.tensor([0, 0, 2, 2]), torch.tensor([True, True, True, False])
    target, share = _random(3, 3, seed=2), torch.full((3,), 1 / 3).double()

    def loss(mean: Tensor, var: Tensor) -> Tensor:
        moments, count = group_moments(Moments(mean, var), labels, counted, 3)
        groups = ClassGroups(moments.mean, spread_of(moments.var, "std"), count, torch.arange(3))
        return centroid_loss(groups, target, target, count > 0, share)

    assert torch.autograd.gradcheck(loss, (mean, var))
    gradient, _ = torch.autograd.grad(loss(mean, var), (mean, var))
    assert torch.isfinite(gradient).all()
    assert torch.equal(gradient[3], torch.zeros(3))
    assert (gradient[:3] != 0).all()


def test_centroids_follow_each_step() -> None:
    centroids = ClassCentroids(3, 2, CPU, rate=0.2, by_epoch=False)
    first, second = _random(3, 2).float(), _random(3, 2, seed=1).float()
    centroids.update(_groups(first, first.abs(), [4, 0, 1]))
    assert centroids.known.tolist() == [True, False, True]
    torch.testing.assert_close(centroids.mean[0], first[0])  # the first estimate is the centroid
    assert torch.equal(centroids.mean[1], torch.zeros(2))
    centroids.update(_groups(second, second.abs(), [1, 1, 0]))
    torch.testing.assert_close(centroids.mean[0], 0.8 * first[0] + 0.2 * second[0])
    torch.testing.assert_close(centroids.spread[1], second[1].abs())
    torch.testing.assert_close(centroids.spread[2], first[2].abs())  # without samples it stays


def test_centroids_of_a_single_class_leave_the_others() -> None:
    centroids = ClassCentroids(3, 2, CPU, rate=0.5, by_epoch=False)
    value = _random(1, 2).float()
    centroids.update(ClassGroups(value, value, torch.tensor([8.0]), torch.tensor([2])))
    assert centroids.known.tolist() == [False, False, True]
    torch.testing.assert_close(centroids.mean[2:], value)


def test_centroids_by_epoch_follow_the_mean_over_samples() -> None:
    centroids = ClassCentroids(3, 2, CPU, rate=0.2, by_epoch=True)
    steps = [_random(3, 2, seed=seed).float() for seed in range(3)]
    centroids.collect(_groups(steps[0], steps[0], [3, 0, 0]))
    centroids.collect(_groups(steps[1], steps[1], [1, 2, 0]))
    assert not centroids.known.any()
    centroids.end_epoch()
    assert centroids.known.tolist() == [True, True, False]
    torch.testing.assert_close(centroids.mean[0], (3 * steps[0][0] + steps[1][0]) / 4)
    before = centroids.mean.clone()
    centroids.collect(_groups(steps[2], steps[2], [5, 0, 0]))
    centroids.end_epoch()
    torch.testing.assert_close(centroids.mean[0], 0.8 * before[0] + 0.2 * steps[2][0])
    assert torch.equal(before[1:], centroids.mean[1:])  # an epoch without samples of a class moves nothing
    assert centroids.known.tolist() == [True, True, False]
