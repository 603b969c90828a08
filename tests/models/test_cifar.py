from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import nn

from dfqbench.api import InputError
from dfqbench.models import digits
from dfqbench.models.cifar import ARCHITECTURES, CifarResNet, PadShortcut


# The numbers of table 6 of He et al. are rounded to 0.27, 0.46, 0.66, 0.85 and 1.7 million.
@pytest.mark.parametrize(
    ("name", "params"),
    [("resnet20", 0.27), ("resnet32", 0.46), ("resnet44", 0.66), ("resnet56", 0.85), ("resnet110", 1.73)],
)
def test_parameter_counts_of_the_paper(name: str, params: float) -> None:
    model = ARCHITECTURES[name](classes=10)
    assert sum(value.numel() for value in model.parameters()) / 1e6 == pytest.approx(params, abs=0.006)


def test_pad_shortcut_is_strided_with_zeros_on_both_sides() -> None:
    x = torch.arange(2.0 * 5 * 5).view(1, 2, 5, 5)
    y = PadShortcut(6)(x)
    assert y.shape == (1, 6, 3, 3)
    assert torch.equal(y[:, 2:4], x[:, :, ::2, ::2])
    assert y[:, [0, 1, 4, 5]].abs().sum() == 0


def test_every_activation_module_is_called_once() -> None:
    model = CifarResNet(20).eval()
    calls: Counter[str] = Counter()
    for name, module in model.named_modules():
        if isinstance(module, nn.ReLU):
            module.register_forward_hook(lambda *_, name=name: calls.update([name]))
    with torch.inference_mode():
        assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert len(calls) == 19
    assert set(calls.values()) == {1}


def test_parameter_names_of_shortcut_b() -> None:
    names = set(CifarResNet(32, 100, "B").state_dict())
    assert {"layer2.0.shortcut.0.weight", "layer3.0.shortcut.1.running_var", "linear.bias"} <= names
    assert not any("shortcut" in name for name in CifarResNet(20).state_dict())


@pytest.mark.parametrize(("name", "params"), [("resnet8", 75_002), ("mobilenet9", 15_688)])
def test_digits_networks(name: str, params: int) -> None:
    model = digits.ARCHITECTURES[name]()
    assert sum(value.numel() for value in model.parameters()) == params
    assert model.eval()(torch.zeros(1, 1, 8, 8)).shape == (1, 10)
    assert any(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def test_impossible_depth_is_an_error() -> None:
    with pytest.raises(InputError, match="cannot have 21 layers"):
        CifarResNet(21)
