"""Slices in traced networks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from dfqbench.models.cifar import CifarResNet, PadShortcut
from dfqbench.native import shortcut as native
from dfqbench.quant import parse_scheme, prepare
from dfqbench.quant.slices import keep_order_of_slices, shortcut, sliced
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


class Cut(nn.Module):
    """A slice and a padding."""

    def __init__(self, index: tuple[slice, ...], *padding: Any, **options: Any) -> None:
        super().__init__()
        self.index, self.padding, self.options = index, padding, options

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[self.index], *self.padding, **self.options)


ALL, HALF, THIRD = slice(None), slice(None, None, 2), slice(None, None, 3)
CHANNELS = (0, 0, 0, 0, 1, 3)


@pytest.fixture(params=["library", None])
def compiled(request: pytest.FixtureRequest) -> None:
    """With the library and without."""
    if request.param is not None:
        request.getfixturevalue(request.param)


@pytest.mark.parametrize("order", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize(("dtype", "height"), [(torch.float32, 6), (torch.bfloat16, 7), (torch.float32, 1)])
@pytest.mark.parametrize(
    ("plain", "target"),
    [
        (PadShortcut(8), shortcut),
        (Cut((ALL, ALL, THIRD, THIRD), CHANNELS), shortcut),
        (Cut((ALL, ALL, HALF, THIRD), CHANNELS), sliced),
        (Cut((ALL, ALL, slice(None, 4, 2), HALF), CHANNELS), sliced),
        (Cut((ALL, HALF, HALF, HALF), CHANNELS), sliced),
        (Cut((ALL, ALL, HALF, HALF), (1, 0)), sliced),
        (Cut((ALL, ALL, HALF, HALF), (0, 1, 0, 0, 0, 0)), sliced),
        (Cut((ALL, ALL, HALF, HALF), (0, 0, 0, 0, -1, 3)), shortcut),
        (Cut((ALL, ALL, HALF, HALF), CHANNELS, "constant", 1.0), sliced),
        (Cut((ALL, ALL, HALF, HALF), CHANNELS, value=1.0), sliced),
    ],
)
@pytest.mark.usefixtures("compiled")
def test_a_shortcuts_gradient_is_the_same_and_lies_as_its_map_does(
    order: torch.memory_format, dtype: torch.dtype, height: int, plain: nn.Module, target: object
) -> None:
    x = torch.randn(2, 4, height, 5).to(dtype).contiguous(memory_format=order)
    traced = fx.symbolic_trace(plain)
    keep_order_of_slices(traced)
    assert ({sliced, shortcut} & set(targets(traced))) == {target}
    expected, found = gradient_of(plain, x), gradient_of(traced, x)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])
    assert found[0].is_contiguous(memory_format=order) or found[0].stride() == expected[0].stride()
    assert found[2] == [x.stride()]


@pytest.mark.usefixtures("compiled")
def test_a_shortcut_has_a_second_derivative() -> None:
    x = torch.randn(2, 4, 6, 5).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(2, 8, 3, 3)
    found = []
    for cut in (lambda leaf: shortcut(leaf, (2, 2, 2)), PadShortcut(8)):
        leaf = x.clone().requires_grad_()
        (first,) = torch.autograd.grad((cut(leaf).pow(3) * weight).sum(), leaf, create_graph=True)
        found.append(torch.autograd.grad(first.square().sum(), leaf)[0])
    assert torch.equal(*found)


def test_the_librarys_shortcut(library: str) -> None:
    x = torch.randn(9, 16, 7, 8).contiguous(memory_format=torch.channels_last)
    cut = native.Shortcut(2, 8, 8)
    assert native.fits(x)
    assert not native.fits(x.contiguous())
    assert not native.fits(x.double())
    assert torch.equal(native.shortened(x, cut), PadShortcut(32)(x))
    with pytest.raises(ValueError, match="does not fit"):
        native.gradient(torch.ones(9, 32, 4, 3), x.shape, cut)
    noted = torch._neg_view(torch.ones(9, 32, 4, 4))
    assert torch.equal(native.gradient(noted, x.shape, cut), native.gradient(-torch.ones(9, 32, 4, 4), x.shape, cut))


def test_a_traced_slice_is_one_call_when_it_is_traced_again() -> None:
    traced = fx.symbolic_trace(Head())
    keep_order_of_slices(traced)
    again = fx.symbolic_trace(traced)
    assert shortcut in targets(again)
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
    assert not {sliced, shortcut} & set(targets(traced))
    x = torch.randn(2, 4, 6, 6)
    assert torch.equal(traced(x), Others()(x))


def test_a_students_gradients_meet_in_one_order() -> None:
    network = CifarResNet(20)
    student = prepare(network, parse_scheme("w4a4"), toy_card(size=16))
    graph = student.network
    assert isinstance(graph, fx.GraphModule)
    assert targets(graph).count(shortcut) == 2
