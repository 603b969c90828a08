"""What is measured of images, against independent computations and cases whose answer is known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from tests.report.records import record
from torch import Tensor, nn

from dfqbench.diagnose.cell import diagnose
from dfqbench.diagnose.measures import attention_spread, centre_margin, homogeneity, silhouette
from dfqbench.diagnose.speed import speeds
from dfqbench.testing.toys import toy_network


def diagnosed(
    network: nn.Module, images: Tensor, labels: Tensor | None = None, training: Mapping[int, Tensor] | None = None
) -> dict[str, Any]:
    """Return the diagnosis in the form of a record."""
    return diagnose(network, images, labels, training).model_dump(exclude_unset=True)


def clusters(gap: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    labels = torch.arange(4).repeat(8)
    centres = gap * torch.eye(4, 6)
    return centres[labels] + torch.randn(32, 6, generator=random), labels


def test_separability_grows_with_distance() -> None:
    for measure in (silhouette, centre_margin):
        far, near = measure(*clusters(50.0)), measure(*clusters(0.0))
        assert far is not None
        assert near is not None
        assert far > 0.9
        assert abs(near) < 0.2


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
    features = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
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
    handles = [
        layer.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
        for layer in network.modules()
        if isinstance(layer, nn.BatchNorm2d)
    ]
    with torch.no_grad():
        network(images)
    for handle in handles:
        handle.remove()
    return seen


def test_diagnosis_of_a_cell() -> None:
    network = toy_network()
    images = torch.randn(24, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(4).repeat(6)
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
        assert layer.running_mean is not None
        assert layer.running_var is not None
        mean, var = inputs.mean((0, 2, 3)), inputs.var((0, 2, 3), correction=0)
        gap = (mean - layer.running_mean) / (layer.running_var + layer.eps).sqrt()
        bns = (mean - layer.running_mean).square().mean() + (var - layer.running_var).square().mean()
        assert distances["mean_gap"] == pytest.approx(float(gap.square().mean().sqrt()), rel=1e-3)
        assert distances["bns"] == pytest.approx(float(bns), rel=1e-3)
    assert found["bns"] == pytest.approx(sum(layer["bns"] for layer in found["layers"]) / 2, rel=1e-4)
    steps = {point["step"]: point["homogeneity"] for point in found["over_training"]}
    assert list(steps) == [1, 9]
    assert steps[9] == pytest.approx(1.0)
    assert steps[1] < 1.0
    after = network.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert not network.training


def test_teacher_answers_replace_missing_labels() -> None:
    network = toy_network()
    images = torch.randn(24, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        named = diagnosed(network, images, network(images).argmax(1))
    found = diagnosed(network, images)
    assert found["classes_of"] == "teacher"
    assert "label_accuracy" not in found
    assert found["silhouette"] == named["silhouette"]
    assert named["label_accuracy"] == 100.0


def test_attention_consistency_follows_statistics() -> None:
    network = toy_network()
    noise = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        first_norm = next(layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d))
        inputs = hooked(network, noise)[0]
        first_norm.running_mean = inputs.mean((0, 2, 3))
        first_norm.running_var = inputs.var((0, 2, 3), correction=0)
    first = diagnosed(network, noise)
    other = diagnosed(network, noise * 3 + 1)
    assert first["layers"][0]["mean_gap"] < 1e-3
    assert first["attention_consistency"] < other["attention_consistency"]


def test_network_without_batchnorm() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    found = diagnosed(network.eval(), torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
    assert "bns" not in found
    assert found["attention_consistency"] is None
    assert found["homogeneity"] is not None


def test_speed_is_relative_to_zeroq() -> None:
    zeroq = [record(str(seed), seed=seed, seconds={"synthesis": 60.0 + seed * 8}, source_images=64) for seed in (0, 1)]
    dffg = record("d", method="dffg", seconds={"synthesis": 32.0}, source_images=320)
    other = record("o", method="dffg", seconds={"synthesis": 32.0}, source_images=320, budget="paper")
    old = record("x", method="gdfq")
    real = record("r", method="real", seconds={"synthesis": 0.1}, source_images=1024)
    found = speeds([*zeroq, dffg, other, old, real])
    assert id(real) not in found
    assert found[id(dffg)] == pytest.approx(10.0)
    assert found[id(zeroq[0])] == pytest.approx(64 / 60)
    assert id(other) not in found
    assert id(old) not in found
