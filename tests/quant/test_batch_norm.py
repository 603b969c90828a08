"""Fusion of BatchNorm, residual sum and activation: where it happens, and that it changes nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Literal

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from dfqbench.api import ModelCard
from dfqbench.models.cifar import CifarResNet
from dfqbench.quant import Student, parse_scheme, prepare
from dfqbench.quant.batch_norm import BatchNormAct2d
from dfqbench.quant.trace import trace

CARD = ModelCard((3, 16, 16), (0.0,) * 3, (1.0,) * 3, 10)


def images(count: int = 8) -> Tensor:
    x = torch.randn(count, *CARD.input_size, generator=torch.Generator().manual_seed(5))
    return x.contiguous(memory_format=torch.channels_last)


def with_random_norms(network: nn.Module) -> nn.Module:
    """With BatchNorm layers that neither scale by 1 nor shift by 0, and statistics of noise."""
    random = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.copy_(torch.randn(module.weight.shape, generator=random))
                module.bias.copy_(torch.randn(module.bias.shape, generator=random))
        network.train()(images())
    return network.eval()


def student_of(network: nn.Module) -> Student:
    student = prepare(with_random_norms(network), parse_scheme("w4a4"), CARD)
    with torch.no_grad(), student.observing("minmax"):
        student(images())
    return student


def fused(student: Student) -> int:
    return sum(isinstance(module, BatchNormAct2d) for module in student.modules())


def logits_and_gradients(network: nn.Module) -> list[Tensor]:
    network.zero_grad()
    x = images().requires_grad_()
    logits = network(x)
    logits.square().sum().backward()
    gradients = [x.grad, *(p.grad for p in network.parameters())]
    return [logits.detach(), *(gradient.clone() for gradient in gradients if gradient is not None)]


def resnet(shortcut: Literal["A", "B"] = "A") -> nn.Module:
    torch.manual_seed(0)
    return CifarResNet(8, 10, shortcut)


class Small(nn.Module):
    """A convolution and a BatchNorm layer with a given end."""

    def __init__(self, end: Callable[..., Tensor], between: nn.Module | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.last = nn.Linear(8, 10)
        self.end = end
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        residual = x - 0.5
        x = self.conv(x)
        if self.between is None:
            x = self.end(self.norm(x), residual)
        else:
            normed = self.norm(self.between(x))
            x = F.relu(normed + x.mul_(-2))
        return self.last(x.mean((2, 3)))


def test_gradient_of_a_padded_shortcut_keeps_the_memory_order() -> None:
    student = prepare(with_random_norms(resnet("A")), parse_scheme("w32a32"), CARD)
    first = student.network.get_submodule("layer1.0.bn2")
    outputs: list[Tensor] = []
    first.register_forward_hook(lambda _module, _args, out: outputs.append(out))
    logits = student(images().requires_grad_())
    (gradient,) = torch.autograd.grad(logits.sum(), outputs)
    assert gradient.is_contiguous(memory_format=torch.channels_last)


def in_place(x: Tensor, residual: Tensor) -> Tensor:
    x += residual
    return F.relu_(x)


def into_the_residual(x: Tensor, residual: Tensor) -> Tensor:
    return F.relu(residual.add_(x))


def read_twice(x: Tensor, residual: Tensor) -> Tensor:
    return F.relu(x) + x.mean() + residual.mean()


def something_between(x: Tensor, residual: Tensor) -> Tensor:
    total = x + residual
    F.relu_(residual)
    return F.relu(total)


@pytest.mark.parametrize(
    ("network", "count"),
    [
        (resnet, 7),
        (lambda: resnet("B"), 7),
        (lambda: Small(lambda x, _: F.relu(x)), 1),
        (lambda: Small(lambda x, _: F.relu6(x)), 1),
        (lambda: Small(lambda x, residual: F.relu(residual + x)), 1),
        (lambda: Small(lambda x, residual: F.relu6(x + residual)), 1),
        (lambda: Small(in_place), 1),
        (lambda: Small(into_the_residual), 0),
        (lambda: Small(read_twice), 0),
        (lambda: Small(something_between), 0),
        (lambda: Small(lambda x, residual: F.relu(torch.add(x, residual, alpha=2))), 0),
        (lambda: Small(lambda x, _: F.relu(x + 1)), 0),
        (lambda: Small(lambda x, residual: F.relu(x + residual.size(1))), 0),
        (lambda: Small(lambda x, residual: F.relu(x + residual[:, :1])), 0),
        (lambda: Small(lambda x, _: F.gelu(x)), 0),
    ],
)
def test_fusion_where_it_is_safe_keeps_outputs_and_gradients(network: Callable[[], nn.Module], count: int) -> None:
    teacher = with_random_norms(network())
    student = prepare(teacher, parse_scheme("w32a32"), CARD)
    assert fused(student) == count
    for actual, expected in zip(logits_and_gradients(student), logits_and_gradients(teacher), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("between", [nn.Identity(), nn.Dropout(), nn.Flatten(3)])
def test_input_that_is_changed_in_place_is_not_read_later(between: nn.Module) -> None:
    teacher = with_random_norms(Small(lambda x, _: x, between))
    student = prepare(teacher, parse_scheme("w32a32"), CARD)
    with torch.no_grad():
        torch.testing.assert_close(student(images()), teacher(images()), rtol=1e-4, atol=1e-4)


def test_layer_with_a_hook_is_left_alone() -> None:
    network = with_random_norms(Small(lambda x, _: F.relu(x)))
    norm = network.get_submodule("norm")
    norm.register_forward_hook(lambda _module, _args, out: out * 2)
    student = prepare(network, parse_scheme("w32a32"), CARD)
    assert fused(student) == 0
    with torch.no_grad():
        torch.testing.assert_close(student(images()), network(images()), rtol=1e-4, atol=1e-4)


def test_plain_layer_in_the_place_of_a_fused_one_fails() -> None:
    student = student_of(Small(lambda x, _: F.relu(x)))
    student.network.norm = nn.BatchNorm2d(8).eval()
    with pytest.raises(TypeError):
        student(images())


def test_names_state_and_copies_stay() -> None:
    network = resnet()
    student = student_of(network)
    names = {name for name, _ in network.named_parameters()}
    renamed = (n.replace(".parametrizations.weight.original", ".weight") for n, _ in student.network.named_parameters())
    assert set(renamed) == names
    copied = copy.deepcopy(student)
    assert list(copied.state_dict()) == list(student.state_dict())
    expected = logits_and_gradients(student)
    assert all(torch.equal(a, b) for a, b in zip(logits_and_gradients(copied), expected, strict=True))
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.mul_(1.5)
    assert torch.equal(logits_and_gradients(student)[0], expected[0])


def test_student_can_be_traced_again() -> None:
    student = student_of(resnet())
    assert isinstance(student.network, fx.GraphModule)
    again = trace(student.network)
    assert torch.equal(again(images()), student(images()))


def test_hooks_on_a_student_are_called_once_a_layer() -> None:
    student = student_of(resnet())
    called: list[str] = []
    for name, module in student.network.named_modules():
        if isinstance(module, nn.BatchNorm2d) or module in student.activation_quantizers():
            module.register_forward_hook(lambda _m, _args, _out, name=name: called.append(name))
    student(images().requires_grad_())
    assert len(called) == len(set(called)) == 7 + 7
