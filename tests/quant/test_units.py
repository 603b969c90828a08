"""A student's units: nothing but the order of sums tells, and whoever listens is heard."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from tests.native.convolutions import Asked, counted_units
from tests.quant.test_blocks import CARD, images, passed, resnet, student_of
from tests.quant.units import assert_alike, calls, one_after_another
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from dfqbench.models.cifar import CifarResNet
from dfqbench.native import binding
from dfqbench.native.autocast import are_compiled, convolutions, torchs_convolutions
from dfqbench.quant import Student
from dfqbench.quant.frozen import FrozenBatchNorm2d
from dfqbench.quant.quantizers import ActivationQuantizer
from dfqbench.quant.units import conv_output, inner_output, unit_output


@pytest.mark.parametrize("shortcut", ["A", "B"])
def test_a_student_learns_as_without_units(library: str, shortcut: Literal["A", "B"]) -> None:
    torch.manual_seed(0)
    student = student_of(CifarResNet(20, 10, shortcut))
    # Each stage has three blocks of two; those that take a step begin with another kind of convolution.
    singles = 2 if shortcut == "A" else 0  # a shortcut's own convolution comes between
    assert calls(student) == (singles, 7)
    with counted_units() as shapes:
        found = passed(student)
    assert sorted(shapes) == sorted([(16, 16)] * 6 + [(32, 32)] * (4 + singles // 2) + [(64, 64)] * (4 + singles // 2))
    with one_after_another(), counted_units() as shapes:
        expected = passed(student)
    assert shapes == []
    assert_alike(found, expected)


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
    # Whoever listens to the identity alone needs no convolution apart from its block.
    assert shapes.count((16, 16)) == (2 if name == "shortcut" else 1)
    assert_alike(found, expected)
    handle.remove()
    with counted_units() as shapes:
        passed(student)
    assert shapes.count((16, 16)) == 2


def test_a_shortcut_that_gives_something_else_is_added(library: str) -> None:
    student = student_of(resnet())
    before = passed(student)
    shortcut = student.network.get_submodule("layer1.0.shortcut")
    shortcut.register_forward_hook(lambda _module, _args, out: out * 2)
    with counted_units() as shapes:
        found = passed(student)
    assert len(shapes) == 4
    assert not torch.equal(found[0], before[0])
    with one_after_another():
        assert_alike(found, passed(student))


def test_modes_that_want_to_see_convolutions_see_them(library: str) -> None:
    student = student_of(resnet())
    network, x = student.network, images().requires_grad_()
    with convolutions(x.device), counted_units() as shapes:
        network(x)
        assert len(shapes) == 4
        with Asked() as asked:
            network(x)
        assert asked.names.count("conv2d") == 7
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
    block.shortcut = nn.ReLU6(inplace=True)
    with pytest.raises(RuntimeError, match="changed in place|modified by an inplace"):
        passed(student)


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


def one_unit(unit: Any, x: Tensor, *residual: Any) -> Tensor:
    conv, norm, quantizer = unit
    return unit_output(norm, quantizer, conv_output(conv, x), *residual)


def residual_block(first: Any, second: Any, x: Tensor) -> Tensor:
    conv, norm, quantizer = first
    inner = inner_output(norm, quantizer, conv_output(conv, x))
    return one_unit(second, inner, x)  # type: ignore[arg-type]


class OtherNorm(FrozenBatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


class OtherQuantizer(ActivationQuantizer):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


def other_norm(unit: list[Any]) -> None:
    unit[1].__class__ = OtherNorm


def other_quantizer(unit: list[Any]) -> None:
    unit[2].__class__ = OtherQuantizer


def in_training(unit: list[Any]) -> None:
    unit[1].training = True


def in_double(unit: list[Any]) -> None:
    unit[1].double()


class Own(Tensor):
    """A tensor of a class of its own."""


class Seen(TorchDispatchMode):
    """Counts convolutions where operations are carried out."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += "convolution" in str(func)
        return func(*args, **(kwargs or {}))


def unit_of(student: Student) -> Any:
    """The first residual block's first convolution, its norm and its quantizer."""
    block = student.network.get_submodule("layer1.0")
    (quantizer,) = (one for one in student.activation_quantizers() if one.name.startswith("layer1.0.relu1"))
    return [block.conv1, block.bn1, quantizer]


@pytest.mark.parametrize("change", [None, other_norm, other_quantizer, in_training, in_double])
def test_what_is_not_what_it_was_is_not_joined(library: str, change: Callable[[Any], None] | None) -> None:
    student = student_of(resnet())
    unit = unit_of(student)
    x = torch.randn(2, 16, 8, 8).contiguous(memory_format=torch.channels_last)

    def learned() -> list[Tensor]:
        leaf = x.clone().requires_grad_()
        student.zero_grad()
        with convolutions(x.device):
            out = one_unit(unit, leaf)
        out.square().sum().backward()
        found = [leaf.grad, *(one.grad for one in unit[1].parameters())]
        return [out.detach(), *(one for one in found if one is not None)]

    if change is not None:
        change(unit)
    with counted_units() as shapes:
        found = learned()
    assert len(shapes) == (change is None)
    with one_after_another():
        expected = learned()
    assert len(found) == len(expected) == 4
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * float(other.abs().max()))


def test_tensors_that_are_not_plain_are_not_joined(library: str) -> None:
    unit = unit_of(student_of(resnet()))
    x = torch.randn(2, 16, 8, 8).contiguous(memory_format=torch.channels_last)
    own = x.as_subclass(Own)
    with convolutions(x.device), counted_units() as shapes:
        one_unit(unit, x, x)
        assert len(shapes) == 1
        one_unit(unit, x, own)
        one_unit(unit, own)
        one_unit(unit, x, x[:, :, :1])
        one_unit(unit, x, x.double())
        one_unit(unit, x, 0.5)
        with Seen() as seen:
            one_unit(unit, x)
        assert seen.count == 1
        assert len(shapes) == 1


def test_convolutions_that_do_not_fit_one_another_are_an_error_as_ever(library: str) -> None:
    student = student_of(resnet())
    block, other = unit_of(student), unit_of(student)
    block[0] = nn.Conv2d(16, 32, 3, padding=1, bias=False).to(memory_format=torch.channels_last)
    block[1] = FrozenBatchNorm2d(32).eval()
    x = torch.randn(2, 16, 8, 8).contiguous(memory_format=torch.channels_last)
    with convolutions(x.device), pytest.raises(RuntimeError, match="channels"):
        residual_block(block, other, x)


def test_kernels_for_gpus_join_nothing(kernels: None) -> None:
    with convolutions(torch.device("cpu")):
        assert not are_compiled(torch.device("cpu"))


def test_the_library_joins(library: str) -> None:
    device = torch.device("cpu")
    assert not are_compiled(device)
    with convolutions(device):
        assert are_compiled(device)
