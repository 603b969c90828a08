from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dfqbench.api import Skip
from dfqbench.synth import (
    FeatureMaps,
    attention_centre,
    attention_consistency_loss,
    attention_map,
    batch_statistics,
    centre_matching_loss,
    pair_similarity_loss,
    paired_condition,
    pairs,
)
from dfqbench.testing.toys import toy_network


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_attention_centre_is_the_formula() -> None:
    features = _random(2, 3, 4, 5)
    actual = attention_centre(attention_map(features))
    for n in range(2):
        total, x, y = 0.0, 0.0, 0.0
        for i in range(4):
            for j in range(5):
                a = sum(float(features[n, c, i, j]) ** 2 for c in range(3)) / 3
                total += a
                x += a * (-1 + 2 * j / 4)
                y += a * (-1 + 2 * i / 3)
        assert actual[n].tolist() == pytest.approx([x / total, y / total], rel=1e-6)


def test_attention_centre_of_nothing_and_of_one_position() -> None:
    assert torch.equal(attention_centre(torch.zeros(2, 3, 3)), torch.zeros(2, 2))
    assert torch.equal(attention_centre(torch.ones(1, 1, 1)), torch.zeros(1, 2))


@pytest.mark.parametrize("tolerance", [0.0, 0.15])
def test_centre_matching_loss_and_gradient(tolerance: float) -> None:
    attention = attention_map(_random(2, 3, 3, 3))
    centre = torch.tensor([[0.3, -0.2], [0.0, 0.5]], dtype=torch.float64)
    gaps = (attention_centre(attention) - centre).norm(dim=1).tolist()
    expected = sum(max(0.0, gap - tolerance) ** 2 for gap in gaps) / 2
    assert float(centre_matching_loss(attention, centre, tolerance)) == pytest.approx(expected)
    assert expected > 0
    features = _random(2, 2, 2, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda f: centre_matching_loss(attention_map(f), centre, tolerance), (features,))


def test_centres_within_the_tolerance_cost_nothing() -> None:
    attention = torch.rand((1, 4, 4), generator=torch.Generator().manual_seed(0)).requires_grad_()
    own = attention_centre(attention.detach())
    for offset, costs in (((0.0, 0.0), False), ((0.08, -0.08), False), ((0.2, 0.0), True)):
        loss = centre_matching_loss(attention, own + torch.tensor(offset), 0.15)
        (gradient,) = torch.autograd.grad(loss, attention)
        assert torch.isfinite(gradient).all()
        assert (float(loss.detach()) > 0, bool(gradient.any())) == (costs, costs)
    (gradient,) = torch.autograd.grad(centre_matching_loss(attention, own, 0.0), attention)
    assert torch.equal(gradient, torch.zeros(1, 4, 4))


def test_consistency_loss_is_the_formula() -> None:
    first = [attention_map(_random(2, 3, 4, 4)), attention_map(_random(2, 3, 2, 2, seed=1))]
    second = [attention_map(_random(2, 3, 4, 4, seed=2)), attention_map(_random(2, 3, 2, 2, seed=3))]
    expected = 0.0
    for a, b in zip(first, second, strict=True):
        for n in range(2):
            cosine = float((a[n] * b[n]).sum() / (a[n].square().sum() * b[n].square().sum()).sqrt())
            expected += (2 - 2 * cosine) / 2 / 2  # ||u - v||^2 of unit vectors
    assert float(attention_consistency_loss(first, second)) == pytest.approx(expected, rel=1e-6)
    assert float(attention_consistency_loss(first, first)) == 0.0


def test_consistency_loss_of_an_empty_map_has_a_finite_gradient() -> None:
    features = torch.zeros((1, 2, 2, 2), requires_grad=True)
    loss = attention_consistency_loss([attention_map(features)], [attention_map(features + 1)])
    assert torch.isfinite(torch.autograd.grad(loss, features)[0]).all()


def test_pair_loss_is_the_formula() -> None:
    first, second = attention_map(_random(6, 3, 2, 3)), attention_map(_random(6, 3, 2, 3, seed=1))
    cosines = [float((a * b).sum() / (a.norm() * b.norm())) for a, b in zip(first, second, strict=True)]
    assert min(cosines) < 0.8 < max(cosines)
    expected = sum(max(0.0, cosine - 0.8) for cosine in cosines) / 6
    assert float(pair_similarity_loss(first, second, 0.8)) == pytest.approx(expected, rel=1e-6)
    assert float(pair_similarity_loss(first, first, 0.8)) == pytest.approx(0.2, rel=1e-6)
    assert torch.autograd.gradcheck(lambda a: pair_similarity_loss(a, second, 0.8), (first.clone().requires_grad_(),))


def test_pairs_below_the_margin_cost_nothing() -> None:
    first = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]], requires_grad=True)
    loss = pair_similarity_loss(first, torch.tensor([[[1.0, 1.0], [1.0, 0.0]]]), 0.7)  # cosine 0.58
    assert float(loss.detach()) == 0.0
    assert torch.equal(torch.autograd.grad(loss, first)[0], torch.zeros(1, 2, 2))


def test_pair_loss_of_an_empty_map_has_a_finite_gradient() -> None:
    features = torch.zeros((1, 2, 2, 2), requires_grad=True)
    loss = pair_similarity_loss(attention_map(features), torch.ones(1, 2, 2), -1.0)
    assert torch.isfinite(torch.autograd.grad(loss, features)[0]).all()


def test_no_pair_costs_nothing() -> None:
    assert float(pair_similarity_loss(*pairs(torch.ones(1, 2, 2)), 0.7)) == 0.0


@pytest.mark.parametrize("size", [1, 2, 7, 8])
def test_pairs_share_label_and_centre_but_not_noise(size: int) -> None:
    def centres(count: int, random: torch.Generator) -> Tensor:
        return torch.randn((count, 2), generator=random)

    condition = paired_condition(10, 50, centres)(size, torch.Generator().manual_seed(0))
    assert condition.extra is not None
    assert len(condition.labels) == len(condition.noise) == len(condition.extra) == size
    for shared in (condition.labels, condition.extra):
        assert torch.equal(*pairs(shared))
    first, second = pairs(condition.noise)
    assert not len(first) or not torch.equal(first, second)


class _Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv(x) + x)


def test_stages_are_the_last_maps_of_each_resolution() -> None:
    block = _Residual()
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        block,
        nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 1),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 2),
    )
    images = torch.randn((2, 3, 4, 6), generator=torch.Generator().manual_seed(0))
    with FeatureMaps(network) as recorder:
        network(images)
        maps = recorder.last
    assert [tuple(stage.shape) for stage in maps.stages] == [(2, 4, 4, 6), (2, 6, 2, 3)]
    torch.testing.assert_close(maps.stages[0], network[:2](images))
    torch.testing.assert_close(maps.stages[1], network[:5](images))
    torch.testing.assert_close(maps.penultimate, network[:7](images))


def test_without_linear_layer_the_last_stage_is_pooled() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 2, 1), nn.Flatten())
    images = torch.randn((2, 3, 3, 3), generator=torch.Generator().manual_seed(0))
    with FeatureMaps(network) as recorder:
        network(images)
        torch.testing.assert_close(recorder.last.penultimate, network[0](images).mean((2, 3)))


def test_a_network_without_maps_is_skipped() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    with FeatureMaps(network) as recorder:
        network(torch.zeros(1, 3, 2, 2))
        with pytest.raises(Skip, match="feature map"):
            _ = recorder.last


def test_batch_statistics_changes_the_output_and_no_buffer() -> None:
    network = toy_network()
    network.add_module("dropout", nn.Dropout(0.9).eval())
    before = {name: value.clone() for name, value in network.state_dict().items()}
    images = torch.randn((4, 3, 8, 8), generator=torch.Generator().manual_seed(0)) * 3
    normal = network(images)
    with batch_statistics(network):
        first, second = network(images), network(images)
    assert torch.equal(first, second)  # dropout stays off
    assert not torch.allclose(first, normal)
    assert torch.equal(network(images), normal)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    torch.testing.assert_close(first, toy_network().train()(images))
