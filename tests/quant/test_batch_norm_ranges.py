"""Ranges from BatchNorm's parameters, on networks whose answer is known."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dfqbench.api import ModelCard, Unavailable
from dfqbench.models.digits import resnet8
from dfqbench.quant import parse_scheme, prepare, set_ranges_from_batchnorm

CARD = ModelCard((3, 8, 8), (0.5, 0.5, 0.4), (0.5, 0.25, 0.5), 4)
GDFQ, DEPLOY = "w4a4@gdfq", "w4a4@deploy"


def norm(beta: Sequence[float], gamma: Sequence[float]) -> nn.BatchNorm2d:
    layer = nn.BatchNorm2d(len(beta), eps=0.0)
    layer.bias.data, layer.weight.data = torch.tensor(beta), torch.tensor(gamma)
    layer.get_buffer("running_mean").normal_()
    layer.get_buffer("running_var").uniform_(0.5, 2.0)
    return layer


def ranges(network: nn.Module, scheme: str = GDFQ, deviations: float = 6.0) -> list[tuple[float, float]]:
    student = prepare(network.eval(), parse_scheme(scheme), CARD)
    set_ranges_from_batchnorm(student, CARD, deviations)
    assert (student.range_steps, student.images_seen) == (1, 0)
    return [(float(q.low), float(q.high)) for q in student.activation_quantizers()]


def head(channels: int, activation: nn.Module, layer: nn.Module | None = None) -> nn.Module:
    layer = layer or norm([1.0, 2.0], [0.5, -0.25])
    tail = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 4))
    return nn.Sequential(nn.Conv2d(3, channels, 3), layer, activation, *tail)


@pytest.mark.parametrize(
    ("beta", "gamma", "deviations", "expected"),
    [
        ((1.0, 2.0), (0.5, -0.25), 6.0, (0.0, 4.0)),
        ((1.0, 2.0), (0.5, -0.25), 1.0, (0.5, 2.25)),
        ((-9.0, -1.0), (1.0, 0.5), 6.0, (0.0, 2.0)),
    ],
)
def test_range_after_relu(
    beta: Sequence[float], gamma: Sequence[float], deviations: float, expected: tuple[float, float]
) -> None:
    assert ranges(head(2, nn.ReLU(), norm(beta, gamma)), deviations=deviations) == [pytest.approx(expected)]


@pytest.mark.parametrize(
    ("activation", "expected"),
    [
        (nn.ReLU6(), (0.0, 4.0)),
        (nn.Hardtanh(-1.0, 1.0), (-1.0, 1.0)),
        (nn.PReLU(2, 0.5), (-1.0, 4.0)),
        (nn.SiLU(), (-0.2785, 4 / (1 + math.exp(-4)))),
    ],
)
def test_range_after_other_activations(activation: nn.Module, expected: tuple[float, float]) -> None:
    assert ranges(head(2, activation)) == [pytest.approx(expected, abs=1e-4)]


def test_batchnorm_without_parameters_is_standard_normal() -> None:
    assert ranges(head(2, nn.ReLU(), nn.BatchNorm2d(2, eps=0.0, affine=False))) == [pytest.approx((0.0, 6.0))]


def test_image_and_folded_layers_have_ranges_under_deploy() -> None:
    lowest, highest = min(CARD.lowest), max(CARD.highest)
    assert ranges(head(2, nn.ReLU()), DEPLOY) == [pytest.approx((0.0, 4.0)), pytest.approx((lowest, highest))]


class Residual(nn.Module):
    def __init__(self, joins: str) -> None:
        super().__init__()
        self.joins = joins
        self.conv1, self.norm1 = nn.Conv2d(3, 2, 3, padding=1), norm([1.0, 2.0], [0.5, 0.25])
        self.conv2, self.norm2 = nn.Conv2d(2, 2, 3, padding=1), norm([-1.0, 0.5], [0.5, 1.0])
        self.last = nn.Conv2d(4 if joins == "cat" else 2, 4, 8)

    def forward(self, x: Tensor) -> Tensor:
        first = self.norm1(self.conv1(x))
        if self.joins == "rectified":
            first = F.relu(first)
        second = self.norm2(self.conv2(first))
        joined = torch.cat([first, second], 1) if self.joins == "cat" else first + second
        return self.last(F.relu(joined)).flatten(1)


def test_sum_adds_means_and_variances() -> None:
    (actual,) = ranges(Residual("add"))
    assert actual == pytest.approx((0.0, max(0.0 + 6 * math.hypot(0.5, 0.5), 2.5 + 6 * math.hypot(0.25, 1.0))))


def test_concatenation_keeps_each_part() -> None:
    assert ranges(Residual("cat")) == [pytest.approx((0.0, 6.5))]


def test_sum_with_an_activation_uses_its_moments() -> None:
    images = torch.randn(200_000, 2, generator=torch.Generator().manual_seed(0))
    rectified = (torch.tensor([1.0, 2.0]) + torch.tensor([0.5, 0.25]) * images).relu()
    std = (rectified.var(0) + torch.tensor([0.5, 1.0]) ** 2).sqrt()
    highs = rectified.mean(0) + torch.tensor([-1.0, 0.5]) + 6 * std
    assert ranges(Residual("rectified"))[1] == pytest.approx((0.0, float(highs.max())), rel=5e-3)


@pytest.mark.parametrize("scheme", [GDFQ, DEPLOY])
def test_zero_padded_shortcut_is_followed(scheme: str) -> None:
    card = ModelCard((1, 8, 8), (0.3,), (0.4,), 10)
    student = prepare(resnet8().eval(), parse_scheme(scheme), card)
    set_ranges_from_batchnorm(student, card)
    assert all(float(q.high) > 0 for q in student.activation_quantizers())
    assert torch.isfinite(student(torch.randn(2, 1, 8, 8))).all()


def test_tensor_without_batchnorm_is_unavailable_and_changes_nothing() -> None:
    network = nn.Sequential(nn.Conv2d(3, 2, 8), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten())
    network.append(nn.Linear(2, 4)).append(nn.ReLU()).append(nn.Linear(4, 4)).eval()
    student = prepare(network, parse_scheme(GDFQ), CARD)
    with pytest.raises(Unavailable, match=r"range rule 'bn': the values of 5#_5 do not follow from BatchNorm"):
        set_ranges_from_batchnorm(student, CARD)
    assert student.range_steps == 0


def test_rescaled_statistics_of_a_folded_layer_rescale_the_range() -> None:
    student = prepare(head(2, nn.ReLU()).eval(), parse_scheme(DEPLOY), CARD)
    convolution = student.network.get_submodule("0")
    for name in ("bn_mean", "bn_std"):
        convolution.get_buffer(name).div_(2)
    set_ranges_from_batchnorm(student, CARD)
    assert float(student.activation_quantizers()[0].high) == pytest.approx(2.0)
    assert not any("bn_" in name for name in student.state_dict())


def test_a_constant_channel_has_no_deviation() -> None:
    layer = norm([1.0, 2.0], [0.5, 50.0])
    layer.eps = 1e-3
    layer.get_buffer("running_var").copy_(torch.tensor([1.0, 0.0]))
    expected = pytest.approx((0.0, 1.0 + 6.0 * 0.5 / math.sqrt(1.001)))
    assert ranges(head(2, nn.ReLU(), layer)) == [expected]
