"""Convolutions that take steps, by the library for CPUs, against torch's."""

from __future__ import annotations

import pytest
import torch
from dfqbench.native import binding, strided
from dfqbench.native.autocast import Autocast
from dfqbench.native.operands import unobserved
from tests.native.convolutions import CPU, Asked, Counted, assert_no_thread_changes, drawn, learned, second_derivative
from torch import Tensor, nn
from torch.nn import functional as F

from dfqbench.api import ModelCard
from dfqbench.models.cifar import CifarResNet
from dfqbench.quant import parse_scheme, prepare

HALVING = ((2, 2), (1, 1), (1, 1), 1)
CASES = (
    (3, 16, 32, 7, 6, 3, 2, 1),
    (2, 16, 32, 20, 21, 3, 2, 1),
    (2, 32, 16, 8, 8, 3, 2, 0),
    (1, 16, 48, 1, 1, 3, 2, 1),
    (2, 16, 16, 5, 5, 1, 2, 0),
    (2, 3, 16, 9, 12, 7, 2, 3),
    (9, 1, 16, 8, 5, 3, 2, 1),
    (2, 4, 16, 8, 7, 5, 3, 2),
    (3, 16, 32, 7, 9, 5, 3, 2),
    (2, 16, 16, 9, 11, 4, 2, 1),
    (2, 16, 16, 8, 8, 1, 3, 0),
    (2, 3, 16, 7, 7, 2, 3, 0),
    (2, 16, 16, 5, 6, 3, 2, 4),
    (11, 48, 80, 4, 4, 3, 2, 1),
)
"""Samples, channels of input and output, height, width, side of the window, step, margin: what a step leaves over,
windows smaller than a step and larger than the map, margins wider than a window, more samples than parts of a sum."""


def operands(case: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor, tuple[object, ...]]:
    """Input, weight, gradient at the output, and the numbers that torch takes."""
    samples, channels, outputs, height, width, side, step, margin = case
    x, weight = drawn(samples, channels, height, width, seed=1), drawn(outputs, channels, side, side, seed=2)
    out = F.conv2d(x, weight, stride=step, padding=margin)
    return x, weight, drawn(*out.shape, seed=3), ((step, step), (margin, margin), (1, 1), 1)


def exact(x: Tensor, weight: Tensor, grad: Tensor, numbers: tuple[object, ...]) -> list[Tensor]:
    leaves = x.double().requires_grad_(), weight.double().requires_grad_()
    out = torch.conv2d(*leaves, None, *numbers)  # type: ignore[call-overload]
    out.backward(grad.double())
    return [out.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


def compiled(x: Tensor, weight: Tensor, grad: Tensor, numbers: tuple[object, ...]) -> list[Tensor]:
    steps = strided.fits(x, weight, numbers)
    assert steps is not None
    to_x, to_weight = strided.gradients(grad, x, weight, steps, (True, True))
    assert to_x is not None
    assert to_weight is not None
    return [strided.convolved(x, weight, steps), to_x, to_weight]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("order", [torch.channels_last, torch.contiguous_format])
def test_a_convolution_and_its_gradients_are_those_of_double_precision(
    library: str, case: tuple[int, ...], order: torch.memory_format
) -> None:
    x, weight, grad, numbers = operands(case)
    wanted = exact(x, weight, grad, numbers)
    found = compiled(x, weight.contiguous(memory_format=order), grad.contiguous(), numbers)
    for one, other in zip(found, wanted, strict=True):
        assert one.shape == other.shape
        assert (one.double() - other).abs().max() <= 1e-6 * other.abs().max()
        assert one.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("case", [(20, 16, 32, 9, 8, 3, 2, 1), (9, 3, 16, 20, 20, 7, 2, 3)])
def test_the_number_of_threads_changes_nothing(library: str, case: tuple[int, ...]) -> None:
    assert_no_thread_changes(lambda: [*compiled(*operands(case))])


def test_what_does_not_fit_is_left_to_torch(library: str) -> None:
    x, weight, grad, _ = operands((2, 16, 32, 6, 6, 3, 2, 1))
    steps = strided.fits(x, weight, HALVING)
    assert steps == (2, 1)
    assert strided.fits(x, weight, (2, 1, 1, 1)) == steps
    for numbers in (
        ((1, 1), *HALVING[1:]),
        ((2, 1), *HALVING[1:]),
        (HALVING[0], "valid", *HALVING[2:]),
        (HALVING[0], (1, 0), *HALVING[2:]),
        (*HALVING[:2], (2, 2), 1),
        (*HALVING[:3], 2),
        (HALVING[0], (-1, -1), *HALVING[2:]),
        ((5, 5), *HALVING[1:]),
        ((), *HALVING[1:]),
    ):
        assert strided.fits(x, weight, numbers) is None
    assert strided.fits(x, weight[:24], HALVING) is None
    assert strided.fits(x, weight[:, :, :1], HALVING) is None
    assert strided.fits(x, drawn(32, 32, 3, 3), HALVING) is None
    assert strided.fits(drawn(2, 8, 6, 6), drawn(32, 8, 3, 3), HALVING) is None
    assert strided.fits(drawn(2, 4, 6, 6), drawn(32, 4, 3, 3), HALVING) == steps
    assert strided.fits(x.double(), weight.double(), HALVING) is None
    assert strided.fits(x, weight.double(), HALVING) is None
    assert strided.fits(x.double(), weight, HALVING) is None
    assert strided.fits(x.contiguous(), weight, HALVING) is None
    assert strided.fits(x[:0], weight, HALVING) is None
    assert strided.fits(drawn(2, 16, 1, 1), drawn(16, 16, 3, 3), (2, 1, 1, 1)) == steps
    assert strided.fits(drawn(2, 16, 1, 1), drawn(16, 16, 5, 5), HALVING) is None
    assert strided.fits(drawn(1, 256, 4, 4), drawn(512, 256, 3, 3), HALVING) is None
    with binding.using(None):
        assert strided.fits(x, weight, HALVING) is None
    with binding.using_passes(binding.Passes("cpu", lambda *_: None, saves_launches=True)):
        assert strided.fits(x, weight, HALVING) is None
    with pytest.raises(ValueError, match="does not fit"):
        strided.gradients(grad[:, :, :2], x, weight, steps, (True, False))
    assert strided.gradients(grad, x, weight, steps, (False, False)) == (None, None)


def test_a_gradient_of_another_type_or_sign_is_read_as_it_is(library: str) -> None:
    x, weight, grad, _ = operands((2, 16, 32, 6, 6, 3, 2, 1))
    steps = strided.Steps(2, 1)
    wanted = strided.gradients(grad.bfloat16().float(), x, weight, steps, (True, True))
    for given in (grad.bfloat16(), grad.bfloat16().double(), torch._neg_view(-grad.bfloat16().float())):
        found = strided.gradients(given, x, weight, steps, (True, True))
        for one, other in zip(found, wanted, strict=True):
            assert one is not None
            assert other is not None
            assert torch.equal(one, other)


OF_RESNET20 = [(32, 16), (64, 32)]


def test_a_network_learns_as_with_torchs_convolutions(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 16, 7, 2, 3), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1, bias=False), nn.ReLU(), nn.Conv2d(32, 16, 1, 2)
    ).to(memory_format=torch.channels_last)
    images = drawn(4, 3, 33, 32)
    counted = Counted(monkeypatch, strided)

    ours = learned(network, images)
    assert counted.shapes == [(16, 3), (32, 16), (16, 32)]
    with binding.using(None):
        theirs = learned(network, images)
    assert len(counted.shapes) == 3
    assert len(ours) == len(theirs) == 7
    for one, other in zip(ours, theirs, strict=True):
        assert (one - other).norm() <= 1e-5 * other.norm()


def test_a_students_training_uses_it_and_its_evaluation_does_not(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network = CifarResNet(20).eval().to(memory_format=torch.channels_last)
    card = ModelCard((3, 16, 16), (0.0,) * 3, (1.0,) * 3, 10)
    student = prepare(network, parse_scheme("w4a4"), card)
    counted, images = Counted(monkeypatch, strided), drawn(2, 3, 16, 16)
    with torch.no_grad(), Autocast(CPU, enabled=False):
        student(images)
    assert counted.shapes == []
    student(images).sum().backward()
    assert counted.shapes == OF_RESNET20


@pytest.mark.parametrize("case", [(2, 16, 16, 6, 5, 3, 2, 1), (2, 16, 16, 9, 8, 5, 3, 2), (2, 16, 16, 9, 8, 3, 2, 0)])
def test_second_derivatives_are_torchs(library: str, monkeypatch: pytest.MonkeyPatch, case: tuple[int, ...]) -> None:
    x, weight, _, numbers = operands(case)
    counted = Counted(monkeypatch, strided)

    def conv(x: Tensor) -> Tensor:
        found: Tensor = torch.conv2d(x, weight, None, *numbers)  # type: ignore[call-overload]
        return found

    ours = second_derivative(conv, x)
    assert counted.shapes == [(16, 16)]
    with binding.using(None):
        theirs = second_derivative(conv, x)
    assert (ours - theirs).norm() <= 1e-5 * theirs.norm()


def test_whoever_looks_on_is_left_to_torch(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, _, numbers = operands((2, 16, 16, 6, 5, 3, 2, 1))
    counted = Counted(monkeypatch, strided)

    def conv(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        found: Tensor = torch.conv2d(x, weight, bias, *numbers)  # type: ignore[call-overload]
        return found

    with Autocast(CPU, enabled=False):
        found = torch.func.grad(lambda weight: conv(x, weight).square().sum())(weight)
        with torch.autocast("cpu", torch.bfloat16):
            assert conv(x, weight).dtype == torch.bfloat16
        nowhere = conv(x.to("meta"), weight.to("meta"))
        assert counted.shapes == []
        bias = torch.arange(16.0)
        torch.testing.assert_close(conv(x, weight, bias), F.conv2d(x, weight, bias, 2, 1))
        assert counted.shapes == [(16, 16)]
    assert found.shape == weight.shape
    assert nowhere.shape == (2, 16, 3, 3)


class Own(Tensor):
    """A class of its own."""


def test_a_students_blocks_and_weights_ask_no_mode(library: str) -> None:
    network = CifarResNet(20).eval().to(memory_format=torch.channels_last)
    student = prepare(network, parse_scheme("w4a4"), ModelCard((3, 16, 16), (0.0,) * 3, (1.0,) * 3, 10))
    images = drawn(2, 3, 16, 16)
    with Asked() as seen:
        images + 1
        with unobserved(images):
            images - 1
        with unobserved(images, Own([1.0])):
            images * 1
        student(images)
    assert seen.names[0] == "add"
    assert "sub" not in seen.names
    assert "mul" in seen.names, "whose class overrides functions is asked"
    # Each of 21 rounded weights and 19 blocks asked its tensors a score of questions.
    assert seen.names.count("data_ptr") <= len(OF_RESNET20) * 3 + 16 * 4
