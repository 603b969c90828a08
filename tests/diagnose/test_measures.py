from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dfqbench.diagnose.cell import diagnose
from dfqbench.diagnose.measures import attention_spread, centre_margin, homogeneity, silhouette
from dfqbench.testing.toys import toy_network


def diagnosed(network: nn.Module, images: Tensor, labels: Tensor | None = None, *training: Any) -> dict[str, Any]:
    """Return the diagnosis in the form of a record."""
    return diagnose(network, images, labels, *training).model_dump(exclude_unset=True)


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def test_separability_grows_with_distance() -> None:
    labels, noise = torch.arange(4).repeat(8), normal(32, 6)
    for measure in (silhouette, centre_margin):
        assert (measure(50.0 * torch.eye(4, 6)[labels] + noise, labels) or 0.0) > 0.9
        assert abs(measure(noise, labels) or 1.0) < 0.2


def test_silhouette_by_hand() -> None:
    features = torch.tensor([[0.0], [1.0], [5.0], [7.0], [100.0]])
    # The last image is alone in its class and is left out. a and b of the others: own class, other class.
    pairs = [(1.0, 6.0), (1.0, 5.0), (2.0, 4.5), (2.0, 6.5)]
    expected = sum((b - a) / b for a, b in pairs) / 4
    assert silhouette(features, torch.tensor([0, 0, 3, 3, 9])) == pytest.approx(expected)


def test_margin_by_hand() -> None:
    features = torch.tensor([[0.0], [2.0], [10.0], [11.0], [-100.0]])
    # To the other images of the own class: 2, 2, 1, 1; to the other centre (10.5 and 1.0): 10.5, 8.5, 9, 10.
    pairs = [(2.0, 10.5), (2.0, 8.5), (1.0, 9.0), (1.0, 10.0)]
    expected = sum((b - a) / b for a, b in pairs) / 4
    assert centre_margin(features, torch.tensor([1, 1, 2, 2, 3])) == pytest.approx(expected)


def test_undefined_measures_are_none() -> None:
    features = normal(4, 3)
    for labels in (torch.arange(4), torch.tensor([0, 0, 0, 1])):
        assert silhouette(features, labels) is None
        assert centre_margin(features, labels) is None
    assert attention_spread(features[:, :2], torch.arange(4)) is None
    assert homogeneity(features[:1]) is None


def test_homogeneity() -> None:
    assert homogeneity(torch.ones(5, 3) * torch.arange(1, 6)[:, None]) == pytest.approx(1.0)
    assert homogeneity(torch.eye(4)) == pytest.approx(0.0)
    assert homogeneity(torch.tensor([[1.0, 0.0], [-1.0, 0.0]])) == pytest.approx(-1.0)


def test_attention_spread() -> None:
    centres = torch.tensor([[0.0, 0.0], [0.0, 0.2], [0.5, 0.5], [0.9, 0.5], [1.0, 1.0]])
    # Squared distances to the class means: 2 * 0.01 and 2 * 0.04, over 4 images less 2 means.
    expected = ((0.02 + 0.08) / 2) ** 0.5
    assert attention_spread(centres, torch.tensor([0, 0, 1, 1, 2])) == pytest.approx(expected)


def hooked(network: nn.Module, images: Tensor) -> list[Tensor]:
    """Inputs of the BatchNorm layers."""
    seen: list[Tensor] = []
    copied = copy.deepcopy(network)
    for layer in copied.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    with torch.no_grad():
        copied(images)
    return seen


def test_diagnosis_of_a_cell() -> None:
    network, images, labels = toy_network(), normal(24, 3, 8, 8), torch.arange(4).repeat(6)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    training = {1: images[:4], 9: images[:1].repeat(4, 1, 1, 1)}
    found = diagnosed(network, images, labels, training)
    with torch.no_grad():
        shares = network(images).softmax(1)
    assert found["confidence"] == pytest.approx(float(shares.max(1).values.mean()), rel=1e-4)
    assert found["label_accuracy"] == pytest.approx(100 * float((shares.argmax(1) == labels).float().mean()), rel=1e-4)
    assert found["label_confidence"] == pytest.approx(float(shares[torch.arange(24), labels].mean()), rel=1e-4)
    norms = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
    for layer, inputs, distances in zip(norms, hooked(network, images), found["layers"], strict=True):
        stored_mean, stored_var = layer.state_dict()["running_mean"], layer.state_dict()["running_var"]
        mean, var = inputs.mean((0, 2, 3)), inputs.var((0, 2, 3), correction=0)
        gap = (mean - stored_mean) / (stored_var + layer.eps).sqrt()
        bns = (mean - stored_mean).square().mean() + (var - stored_var).square().mean()
        assert distances["mean_gap"] == pytest.approx(float(gap.square().mean().sqrt()), rel=1e-3)
        assert distances["bns"] == pytest.approx(float(bns), rel=1e-3)
    assert found["bns"] == pytest.approx(sum(layer["bns"] for layer in found["layers"]) / 2, rel=1e-4)
    steps = {point["step"]: point["homogeneity"] for point in found["over_training"]}
    assert steps == {1: steps[1], 9: pytest.approx(1.0)}
    assert steps[1] < 1.0
    after = network.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert not network.training


def test_teacher_answers_replace_missing_labels() -> None:
    network, images = toy_network(), normal(24, 3, 8, 8)
    with torch.no_grad():
        named = diagnosed(network, images, network(images).argmax(1))
    found = diagnosed(network, images)
    assert found["classes_of"] == "teacher"
    assert "label_accuracy" not in found
    assert found["silhouette"] == named["silhouette"]
    assert named["label_accuracy"] == 100.0


def test_attention_consistency_follows_statistics() -> None:
    network, noise = toy_network(), normal(64, 3, 8, 8)
    first_norm = next(layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d))
    inputs = hooked(network, noise)[0]
    first_norm.running_mean, first_norm.running_var = inputs.mean((0, 2, 3)), inputs.var((0, 2, 3), correction=0)
    first, other = diagnosed(network, noise), diagnosed(network, noise * 3 + 1)
    assert first["layers"][0]["mean_gap"] < 1e-3
    assert first["attention_consistency"] < other["attention_consistency"]


def test_network_without_batchnorm() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    found = diagnosed(network.eval(), normal(8, 3, 8, 8))
    assert "bns" not in found
    assert found["attention_consistency"] is None
    assert found["homogeneity"] is not None
