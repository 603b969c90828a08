from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dfqbench.api import ModelCard
from dfqbench.models.digits import mobilenet9, resnet8
from dfqbench.quant import FakeQuantize, Student, parse_scheme, prepare
from dfqbench.quantizers.units import Unit, split

CARD = ModelCard((1, 8, 8), (0.5,), (0.5,), 10)
SCHEMES = ("w4a4@gdfq", "w4a4@deploy", "w4a4@brecq", "w4a32@squant")
IMAGES = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def _split(network: nn.Module, scheme: str) -> tuple[Student, list[Unit]]:
    student = prepare(network.eval(), parse_scheme(scheme), CARD)
    return student, split(student, IMAGES[:1])


class _Opaque(nn.Module):
    """A part that cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.act, self.second = nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.first(x))
        return self.second(x) if float(x.sum()) > -1 else x


def _with_opaque_part() -> nn.Module:
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), _Opaque(), nn.ReLU(), *head)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("make", [resnet8, mobilenet9, _with_opaque_part])
def test_units_in_order_compute_teacher_and_student(make: type[nn.Module], scheme: str) -> None:
    network = make()
    student, units = _split(network, scheme)
    with torch.no_grad(), student.observing("minmax"):
        student(IMAGES)
        y = y_q = IMAGES
        for unit in units:
            y, y_q = unit.teacher(y), unit.student(y_q)
        torch.testing.assert_close(y, network(IMAGES), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(y_q, student(IMAGES), rtol=0, atol=0)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_residual_blocks_are_units(scheme: str) -> None:
    _, units = _split(resnet8(), scheme)
    assert [unit.name for unit in units] == [
        "conv1",
        "layer1.0.conv1 to layer1.0.conv2",
        "layer2.0.conv1 to layer2.0.conv2",
        "layer3.0.conv1 to layer3.0.conv2",
        "linear",
    ]


def test_part_that_cannot_be_traced_is_one_unit() -> None:
    _, units = _split(_with_opaque_part(), "w4a4@gdfq")
    assert [unit.name for unit in units] == ["0", "3.first to 3.second", "7"]


@pytest.mark.parametrize(
    ("scheme", "expected"), [("w4a4@gdfq", [["1#_1"], []]), ("w4a4@deploy", [["input"], ["3.input"]])]
)
def test_activation_outputs_belong_to_the_unit_before_and_inputs_to_the_one_after(
    scheme: str, expected: list[list[str]]
) -> None:
    _, units = _split(nn.Sequential(nn.Conv2d(1, 4, 8), nn.ReLU(), nn.Flatten(), nn.Linear(4, 10)), scheme)
    quantizers = [[m.name for m in unit.student.modules() if isinstance(m, FakeQuantize)] for unit in units]
    assert quantizers == expected
