"""A student's units: what is joined, and that nothing but the order of sums tells."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import pytest
import torch
from tests.native.convolutions import counted_units
from tests.quant.test_blocks import CARD, images, passed, resnet, student_of
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.resnet import BasicBlock

from dfqbench.models.cifar import CifarResNet
from dfqbench.native import binding
from dfqbench.native.autocast import convolutions, torchs_convolutions
from dfqbench.quant import Student
from dfqbench.quant.units import residual_output, unit_output


def calls(student: Student) -> Counter[Any]:
    assert isinstance(student.network, fx.GraphModule)
    found = Counter(node.target for node in student.network.graph.nodes)
    return Counter({target: found[target] for target in (unit_output, residual_output) if found[target]})


@contextmanager
def one_after_another() -> Iterator[None]:
    """Without units."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dfqbench.quant.units.are_compiled", lambda _device: False)
        yield


class Middle(nn.Module):
    """A given piece of a network between two layers."""

    def __init__(self, middle: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.relu = nn.ReLU()
        self.middle = middle
        self.last = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.middle(self.relu(self.first(x)))
        return self.last(x.mean((2, 3)))


class Piece(nn.Module):
    """A convolution and its BatchNorm layer, with an end that is given."""

    def __init__(self, end: Callable[[Tensor, Tensor], Tensor], conv: nn.Module | None = None) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.conv = conv or nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.end = end

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.norm(self.conv(x)), x)


def relu(x: Tensor, _: Tensor) -> Tensor:
    return F.relu(x)


def added(x: Tensor, taken: Tensor) -> Tensor:
    return F.relu(x + taken)


def assert_alike(found: tuple[Tensor, list[Tensor]], expected: tuple[Tensor, list[Tensor]]) -> None:
    """Same bits, but for gradients of scales and shifts."""
    assert torch.equal(found[0], expected[0])
    assert len(found[1]) == len(expected[1]) > 3
    for one, other in zip(found[1], expected[1], strict=True):
        if one.ndim == 4:
            assert torch.equal(one, other)
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * float(other.abs().max()) + 1e-7)


@pytest.mark.parametrize("shortcut", ["A", "B"])
def test_a_student_learns_as_without_units(library: str, shortcut: Literal["A", "B"]) -> None:
    torch.manual_seed(0)
    student = student_of(CifarResNet(20, 10, shortcut))
    # Each stage has three blocks of two; those that take a step begin with another kind of convolution.
    singles = 2 if shortcut == "A" else 0  # a shortcut's own convolution comes between
    assert calls(student) == Counter({residual_output: 7, unit_output: singles})
    with counted_units() as shapes:
        found = passed(student)
    assert sorted(shapes) == sorted([(16, 16)] * 6 + [(32, 32)] * (4 + singles // 2) + [(64, 64)] * (4 + singles // 2))
    with one_after_another(), counted_units() as shapes:
        expected = passed(student)
    assert shapes == []
    assert_alike(found, expected)


@pytest.mark.parametrize(
    ("piece", "expected"),
    [
        (lambda: Piece(relu), {unit_output: 1}),
        (lambda: Piece(added), {unit_output: 1}),
        (lambda: Piece(lambda x, taken: F.relu(x + taken.neg())), {unit_output: 1}),
        (lambda: Piece(lambda x, taken: F.relu(x + taken.clone().relu_())), {}),
        (lambda: Piece(lambda x, taken: F.relu(x.add_(taken))), {unit_output: 1}),
        (lambda: Piece(lambda x, _: F.relu(x).mul(2)), {unit_output: 1}),
        (lambda: Piece(relu, nn.Conv2d(16, 16, 3, stride=2, padding=1, bias=False)), {}),
        (lambda: Piece(relu, nn.Conv2d(16, 16, 1, bias=False)), {}),
        (lambda: Piece(relu, nn.Conv2d(16, 16, 3, padding=2, bias=False)), {}),
        (lambda: nn.Sequential(Piece(relu), Piece(relu)), {unit_output: 2}),
        (lambda: nn.Sequential(Piece(relu), Piece(added)), {unit_output: 2}),
        (lambda: BasicBlock(16, 16), {residual_output: 1}),
        (lambda: nn.Sequential(BasicBlock(16, 16), BasicBlock(16, 16)), {residual_output: 2}),
    ],
)
def test_what_is_joined(library: str, piece: Callable[[], nn.Module], expected: dict[Any, int]) -> None:
    student = student_of(Middle(piece()))
    assert calls(student) == expected
    with counted_units() as shapes:
        found = passed(student)
    assert len(shapes) == expected.get(unit_output, 0) + 2 * expected.get(residual_output, 0)
    with one_after_another():
        assert_alike(found, passed(student))


class Doubled(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * 2


@pytest.mark.parametrize(
    "conv",
    [
        lambda: Doubled(16, 16, 3, padding=1, bias=False),
        lambda: nn.Conv2d(16, 16, 3, padding=1),
        lambda: nn.Conv2d(16, 16, 3, padding=1, bias=False, padding_mode="circular"),
        lambda: nn.Conv2d(16, 16, 3, padding=1, bias=False, groups=4),
        lambda: nn.Conv2d(16, 16, 3, padding=1, bias=False, dilation=2),
    ],
)
def test_other_convolutions_are_left_as_they_are(library: str, conv: Callable[[], nn.Module]) -> None:
    student = student_of(Middle(Piece(relu, conv())))
    with counted_units() as shapes:
        found = passed(student)
    assert shapes == []
    assert_alike(found, found)
    with torch.no_grad():
        torch.testing.assert_close(student(images()), found[0], rtol=0.1, atol=0.1)


@pytest.mark.parametrize("name", ["conv1", "bn1", "conv2", "bn2", "shortcut"])
def test_whoever_listens_is_heard(library: str, name: str) -> None:
    student = student_of(resnet())
    expected = passed(student)
    heard: list[Tensor] = []
    module = student.network.get_submodule(f"layer1.0.{name}")
    handle = module.register_forward_hook(lambda _module, _args, out: heard.append(out))
    with counted_units() as shapes:
        found = passed(student)
    assert [one.shape for one in heard] == [(8, 16, 16, 16)]
    # Whoever listens to the identity alone needs both convolutions apart from each other, not from their blocks.
    assert shapes.count((16, 16)) == (2 if name == "shortcut" else 1)
    assert_alike(found, expected)
    handle.remove()
    with counted_units() as shapes:
        passed(student)
    assert shapes.count((16, 16)) == 2


class Watched(TorchFunctionMode):
    """Counts convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.conv2d
        return func(*args, **(kwargs or {}))


def test_modes_that_want_to_see_convolutions_see_them(library: str) -> None:
    student = student_of(resnet())
    network, x = student.network, images().requires_grad_()
    with convolutions(x.device), counted_units() as shapes:
        network(x)
        assert len(shapes) == 4
        with Watched() as watched:
            network(x)
        assert watched.count == 7
        with FlopCounterMode(display=False) as flops:
            network(x)
        assert flops.get_total_flops() > 0
        with torchs_convolutions():
            network(x)
        with torch.no_grad():
            network(x)
        with torch.autocast("cpu", torch.bfloat16):
            network(x)
        with binding.using(None):
            network(x)
    network(x)
    assert len(shapes) == 4


@pytest.mark.parametrize("trained", ["images", "weights", "norms"])
def test_what_does_not_learn_has_no_gradient(library: str, trained: str) -> None:
    student = student_of(resnet())
    expected = passed(student)
    names = ["images", *(name for name, _ in student.named_parameters())]
    student.zero_grad()
    for parameter in student.parameters():
        parameter.requires_grad_(("weights" if parameter.ndim > 1 else "norms") == trained)
    x = images().requires_grad_(trained == "images")
    with counted_units() as shapes:
        student(x).square().sum().backward()
    assert len(shapes) == 4
    learned = dict(zip(names, [x, *student.parameters()], strict=True))
    for (name, tensor), wanted in zip(learned.items(), expected[1], strict=True):
        assert (tensor.grad is not None) == tensor.requires_grad, name
        if tensor.grad is not None:
            torch.testing.assert_close(tensor.grad, wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()) + 1e-7)


def test_modules_may_be_replaced_afterwards(library: str) -> None:
    student = student_of(resnet())
    before = passed(student)[0]
    block = student.network.get_submodule("layer1.0")
    plain = nn.Conv2d(16, 16, 3, padding=1)
    assert isinstance(block.conv1, nn.Conv2d)
    with torch.no_grad():
        assert plain.bias is not None
        plain.weight.copy_(block.conv1.weight)
        plain.bias.zero_()
    kept = block.conv1
    block.conv1 = plain
    torch.testing.assert_close(passed(student)[0], before, rtol=0.05, atol=0.05)
    block.conv1, block.shortcut = kept, nn.Flatten(0, 0)
    assert torch.equal(passed(student)[0], before)


def test_copies_compute_the_same(library: str) -> None:
    student = student_of(resnet())
    with counted_units() as shapes:
        assert_alike(passed(copy.deepcopy(student)), passed(student))
    assert len(shapes) == 8


def test_no_second_derivative_is_given_silently(library: str) -> None:
    student = student_of(resnet())
    x = torch.randn(2, *CARD.input_size).requires_grad_()
    (first,) = torch.autograd.grad(student(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()
