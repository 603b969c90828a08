"""Slices in traced networks."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from dfqbench.models.cifar import CifarResNet, PadShortcut
from dfqbench.quant import parse_scheme, prepare
from dfqbench.quant.slices import keep_order_of_slices, sliced
from dfqbench.testing.toys import toy_card


def targets(traced: fx.GraphModule) -> list[object]:
    return [node.target for node in traced.graph.nodes]


class Head(nn.Module):
    """A shortcut after something whose gradient can be looked at."""

    def __init__(self) -> None:
        super().__init__()
        self.shortcut = PadShortcut(8)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.shortcut(x * 1.0)
        return out


def gradient_of(network: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, list[tuple[int, ...]]]:
    leaf = x.clone().requires_grad_()
    seen: list[tuple[int, ...]] = []
    between = leaf * 1.0
    between.register_hook(lambda grad: seen.append(grad.stride()))
    out = network(between)
    out.backward(torch.randn(out.shape, generator=torch.Generator().manual_seed(1)))
    assert leaf.grad is not None
    return out.detach(), leaf.grad, seen


def test_a_shortcuts_gradient_is_the_same_and_lies_as_its_map_does() -> None:
    for order in (torch.channels_last, torch.contiguous_format):
        for height in (6, 7):
            x = torch.randn(2, 4, height, 5).contiguous(memory_format=order)
            plain = PadShortcut(8)
            traced = fx.symbolic_trace(plain)
            keep_order_of_slices(traced)
            assert sliced in targets(traced)
            expected, found = gradient_of(plain, x), gradient_of(traced, x)
            assert torch.equal(found[0], expected[0])
            assert torch.equal(found[1], expected[1])
            assert found[0].stride() == expected[0].stride()
            assert found[2] == [x.stride()]


def test_a_traced_slice_is_one_call_when_it_is_traced_again() -> None:
    traced = fx.symbolic_trace(Head())
    keep_order_of_slices(traced)
    again = fx.symbolic_trace(traced)
    assert sliced in targets(again)
    x = torch.randn(1, 4, 6, 6)
    assert torch.equal(again(x), Head()(x))


def test_slices_that_others_read_or_that_are_no_maps_or_may_be_changed_stay() -> None:
    class Others(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            shared = x[:, :, ::2, ::2]
            rows = x[:, 1:]
            size = x.shape[2] // 2
            asked = x[:, :, :size, :size]
            changed = x[:, :, ::2]
            x.mul_(1.0)
            later = F.pad(changed, (1, 1)).sum() + F.pad(shared, (1, 1)).sum() + shared.mean()
            return F.pad(rows, (1, 1)).sum() + F.pad(asked, (3, 3)).sum() + later

    traced = fx.symbolic_trace(Others())
    keep_order_of_slices(traced)
    assert sliced not in targets(traced)
    x = torch.randn(2, 4, 6, 6)
    assert torch.equal(traced(x), Others()(x))


def test_a_students_gradients_meet_in_one_order() -> None:
    network = CifarResNet(20)
    student = prepare(network, parse_scheme("w4a4"), toy_card(size=16))
    graph = student.network
    assert isinstance(graph, fx.GraphModule)
    assert targets(graph).count(sliced) == 2
