"""Quantizers that do the work of the ReLU before them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dfqbench.api import ModelCard
from dfqbench.quant import parse_scheme, prepare
from dfqbench.quant import rewrite as rewrite_module

CARD = ModelCard((3, 8, 8), (0.5,) * 3, (0.5,) * 3, 5)


class _Rectified(nn.Module):
    """ReLUs of every spelling; the fourth changes what a shortcut reads."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(3, 8, 3, padding=1), *(nn.Conv2d(8, 8, 3, padding=1) for _ in range(5))])
        self.act, self.act_in_place, self.shared = nn.ReLU(), nn.ReLU(inplace=True), nn.ReLU(inplace=True)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.convs[0](x))
        x = self.act_in_place(self.convs[1](x))
        x = F.relu(self.convs[2](x), inplace=True)
        y = self.convs[3](x)
        x = self.shared(y) + y
        x = torch.relu(self.convs[4](x))
        x = self.convs[5](x).relu()
        out: Tensor = self.head(x.mean((2, 3)))
        return out


@pytest.mark.parametrize("bits", ["w4a4", "w2a8"])
def test_a_relu_taken_over_changes_nothing(bits: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network = _Rectified()
    taken = prepare(network, parse_scheme(bits), CARD)
    with monkeypatch.context() as patch:
        patch.setattr(rewrite_module, "_rectified_by", lambda _traced, _node: None)
        plain = prepare(network, parse_scheme(bits), CARD)
    assert [q.rectifies for q in taken.activation_quantizers()] == [True, True, True, False, True, True]
    assert not any(q.rectifies for q in plain.activation_quantizers())
    assert taken.claims == plain.claims
    images = torch.randn(4, 3, 8, 8)
    found = []
    for student in (taken, plain):
        for rule, batch in (("ema", images), ("ema", images + 1), ("minmax", images)):
            with torch.no_grad(), student.observing(rule):  # type: ignore[arg-type]
                student(batch)
        logits = student(images)
        logits.square().sum().backward()
        gradients = [parameter.grad for parameter in student.parameters()]
        found.append([logits.detach(), *gradients, *student.state_dict().values()])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    assert list(taken.state_dict()) == list(plain.state_dict())


def test_a_foreign_range_below_zero_does_not_reach_a_relu() -> None:
    student = prepare(_Rectified(), parse_scheme("w4a4"), CARD)
    quantizer = student.activation_quantizers()[0]
    state = student.state_dict()
    for name in state:
        if name.endswith("range.low"):
            state[name] = torch.tensor(-3.0)
        if name.endswith("range.high"):
            state[name] = torch.tensor(3.0)
    student.load_state_dict(state)
    assert float(quantizer(torch.tensor([[-2.0, -0.5, 0.0]])).min()) == 0.0


def test_a_relu_that_somebody_watches_is_kept() -> None:
    network = _Rectified()
    network.act.register_forward_hook(lambda _module, _args, out: out * 2)
    student = prepare(network, parse_scheme("w4a4"), CARD)
    assert [q.rectifies for q in student.activation_quantizers()][:2] == [False, True]
