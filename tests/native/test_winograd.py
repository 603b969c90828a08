"""3x3 convolutions by the library for CPUs, against torch's."""

from __future__ import annotations

import shutil
import subprocess
from functools import partial
from pathlib import Path

import pytest
import torch
from dfqbench.native import binding, build, convolve, strided
from dfqbench.native.autocast import Autocast
from dfqbench.synth.upsampling import phases_of_conv, weave
from tests.native.convolutions import (
    CPU,
    Counted,
    assert_no_thread_changes,
    counted_units,
    drawn,
    learned,
    second_derivative,
)
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from dfqbench.api import ModelCard
from dfqbench.models.cifar import CifarResNet
from dfqbench.quant import parse_scheme, prepare

NUMBERS = ((1, 1), (1, 1), (1, 1), 1)
FEW = ((2, 16, 3, 5, 6), (1, 32, 1, 1, 1), (3, 16, 4, 40, 70), (2, 48, 2, 3, 33))
"""To few outputs: less than a strip and several, narrow and wide."""
SIZES = (
    (3, 16, 16, 6, 7),
    (2, 32, 16, 5, 5),
    (1, 16, 48, 1, 1),
    (9, 64, 64, 8, 8),
    (2, 144, 80, 7, 3),
    (1, 16, 32, 40, 2),
    (6, 80, 144, 16, 16),
    (1, 528, 16, 3, 4),
    (1, 16, 272, 4, 3),
)
"""Samples, channels of input and output, height and width: of whole tiles and not, fewer tiles and more than a strip,
several blocks of a weight's gradient of several strips each, products deeper than a block."""
TOLERANCE = 3e-6
"""Of the largest element: rounding in transforms and products."""


def operands(size: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Input, weight and gradient at the output."""
    samples, channels, outer, height, width = size
    return (
        drawn(samples, channels, height, width, seed=1),
        drawn(outer, channels, 3, 3, seed=2),
        drawn(samples, outer, height, width, seed=3),
    )


def exact(x: Tensor, weight: Tensor, grad: Tensor) -> list[Tensor]:
    leaves = x.double().requires_grad_(), weight.double().requires_grad_()
    out = F.conv2d(leaves[0], leaves[1], padding=1)
    out.backward(grad.double())
    return [out.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


def compiled(x: Tensor, weight: Tensor, grad: Tensor) -> list[Tensor]:
    return [
        convolve.convolved(x, weight),
        convolve.data_gradient(grad, weight),
        convolve.weight_gradient(x, grad, weight),
    ]


@pytest.mark.parametrize("size", FEW)
@pytest.mark.parametrize("order", [torch.channels_last, torch.contiguous_format])
def test_to_few_channels_likewise(library: str, size: tuple[int, ...], order: torch.memory_format) -> None:
    x, weight, grad = operands(size)
    wanted = exact(x, weight, grad)
    weight = weight.contiguous(memory_format=order)
    assert convolve.fits(x, weight, NUMBERS)
    factor = torch.rand(len(weight), generator=torch.Generator().manual_seed(0)) + 0.5
    found = [
        convolve.convolved(x, weight, factor=factor) / factor.view(1, -1, 1, 1),
        *convolve.gradients(grad.contiguous(), x, weight, (True, True)),
    ]
    for one, other in zip(found, wanted, strict=True):
        assert one is not None
        assert (one.double() - other).abs().max() <= 2e-6 * other.abs().max()
    only = convolve.gradients(grad, x, weight, (False, True), factor=factor)
    assert only[0] is None
    assert only[1] is not None
    assert found[2] is not None
    torch.testing.assert_close(only[1], found[2] * factor.view(-1, 1, 1, 1), rtol=1e-5, atol=1e-4)
    assert only[1].stride() == weight.stride()
    assert convolve.gradients(grad, x, weight, (False, False)) == (None, None)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("order", [torch.channels_last, torch.contiguous_format])
def test_a_convolution_and_its_gradients_are_those_of_double_precision(
    library: str, size: tuple[int, ...], order: torch.memory_format
) -> None:
    x, weight, grad = operands(size)
    wanted = exact(x, weight, grad)
    weight = weight.contiguous(memory_format=order)
    assert convolve.fits(x, weight, NUMBERS)
    found = compiled(x, weight, grad.contiguous())
    for one, other in zip(found, wanted, strict=True):
        # Relative to the largest: sums of numbers of either sign.
        assert (one.double() - other).abs().max() <= TOLERANCE * other.abs().max()
    assert found[0].is_contiguous(memory_format=torch.channels_last)
    assert found[2].stride() == weight.stride()


def test_rounding_costs_little_more_than_in_torchs_convolutions(library: str) -> None:
    x, weight, grad = operands((8, 64, 64, 16, 16))
    leaves = x.clone().requires_grad_(), weight.clone().requires_grad_()
    out = F.conv2d(*leaves, padding=1)
    out.backward(grad)
    by_torch = [out.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]
    for one, other, exactly in zip(compiled(x, weight, grad), by_torch, exact(x, weight, grad), strict=True):
        assert (one.double() - exactly).norm() <= 2.5 * (other.double() - exactly).norm()
        assert (one.double() - exactly).norm() <= 1e-6 * exactly.norm()


def test_sums_are_multiplied_by_a_factor(library: str) -> None:
    x, weight, grad = operands((2, 16, 32, 5, 5))
    factor = torch.rand(32, generator=torch.Generator().manual_seed(0)) + 0.5
    plain, _, to_weight = compiled(x, weight, grad)
    assert torch.equal(convolve.convolved(x, weight, factor=factor), plain * factor.view(1, -1, 1, 1))
    assert torch.equal(convolve.weight_gradient(x, grad, weight, factor=factor), to_weight * factor.view(-1, 1, 1, 1))


# More strips than a thread takes at a time, several blocks of a weight's gradient, few outputs.
@pytest.mark.parametrize("size", [(64, 16, 32, 16, 16), (20, 192, 128, 9, 8), (9, 16, 3, 40, 30)])
def test_the_number_of_threads_changes_nothing(library: str, size: tuple[int, ...]) -> None:
    x, weight, grad = operands(size)
    assert_no_thread_changes(
        lambda: [convolve.convolved(x, weight), *convolve.gradients(grad, x, weight, (True, True))]
    )


def test_a_sample_does_not_depend_on_its_neighbours(library: str) -> None:
    x, weight, _ = operands((9, 32, 16, 6, 6))
    together = convolve.convolved(x, weight)
    alone = [convolve.convolved(x[i : i + 1].contiguous(memory_format=torch.channels_last), weight) for i in range(9)]
    assert torch.equal(together, torch.cat(alone))


def test_what_does_not_fit_is_left_to_torch(library: str) -> None:
    x, weight, grad = operands((2, 16, 16, 6, 6))
    assert convolve.fits(x, weight, NUMBERS)
    assert not convolve.fits(x, weight, ((2, 2), *NUMBERS[1:]))
    assert not convolve.fits(x, weight, ((1, 1), "same", (1, 1), 1))
    assert not convolve.fits(x, weight[:, :4], (*NUMBERS[:3], 4))
    assert not convolve.fits(x, weight[:, :, :1, :1], NUMBERS)
    assert not convolve.fits(x, weight[:10], NUMBERS)
    assert not convolve.fits(drawn(2, 3, 6, 6), drawn(16, 3, 3, 3), NUMBERS)
    assert not convolve.fits(drawn(1, 528, 2, 2), drawn(528, 528, 3, 3), NUMBERS)
    assert not convolve.fits(x.bfloat16(), weight.bfloat16(), NUMBERS)
    assert not convolve.fits(x.double(), weight.double(), NUMBERS)
    assert not convolve.fits(x.contiguous(), weight, NUMBERS)
    assert not convolve.fits(x[:0], weight, NUMBERS)
    with binding.using(None):
        assert not convolve.fits(x, weight, NUMBERS)
    with pytest.raises(ValueError, match="does not fit"):
        convolve.convolved(x, weight[:, :8])
    with pytest.raises(ValueError, match="does not fit"):
        convolve.weight_gradient(x, grad[:, :, :3], weight)


# All of ResNet-20's but those with a stride or of three channels.
OF_RESNET20 = sorted([(16, 16)] * 6 + [(32, 32)] * 5 + [(64, 64)] * 5)


def test_a_network_learns_as_with_torchs_convolutions(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network = CifarResNet(20).eval().to(memory_format=torch.channels_last)
    images = drawn(4, 3, 16, 16)
    counted = Counted(monkeypatch, convolve)

    ours = learned(network, images)
    assert sorted(counted.shapes) == OF_RESNET20
    with binding.using(None):
        theirs = learned(network, images)
    assert len(counted.shapes) == len(OF_RESNET20)
    assert len(ours) == len(theirs) > 40
    for one, other in zip(ours, theirs, strict=True):
        assert (one - other).norm() <= 1e-4 * other.norm()


def test_a_students_training_uses_it_and_its_evaluation_does_not(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network = CifarResNet(20).eval().to(memory_format=torch.channels_last)
    card = ModelCard((3, 16, 16), (0.0,) * 3, (1.0,) * 3, 10)
    student = prepare(network, parse_scheme("w4a4"), card)
    counted, images = Counted(monkeypatch, convolve), drawn(2, 3, 16, 16)
    with torch.no_grad():
        student(images)
        with Autocast(CPU, enabled=False):
            student(images)
            assert counted.shapes == []
            network(images)
    assert sorted(counted.shapes) == OF_RESNET20
    counted.shapes.clear()
    with counted_units() as joined:
        student(images).sum().backward()
    assert sorted([*joined, *counted.shapes]) == OF_RESNET20


def conv(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """As `nn.Conv2d` calls it."""
    return torch.conv2d(x, weight, bias, *NUMBERS)


def test_biases_are_added(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, _ = operands((2, 16, 32, 5, 5))
    bias = torch.randn(32, generator=torch.Generator().manual_seed(4))
    counted = Counted(monkeypatch, convolve)
    with Autocast(CPU, enabled=False):
        found = conv(x, weight, bias)
        assert counted.shapes == [(32, 16)]
        for wrong in (bias[:1], bias.double(), bias.view(32, 1)):
            with pytest.raises(RuntimeError):
                conv(x, weight, wrong)
    torch.testing.assert_close(found, conv(x, weight, bias), rtol=1e-4, atol=1e-4)


def test_second_derivatives_are_torchs(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, _ = operands((2, 16, 16, 5, 5))
    counted = Counted(monkeypatch, convolve)

    ours = second_derivative(partial(conv, weight=weight), x)
    assert counted.shapes == [(16, 16)]
    with binding.using(None):
        theirs = second_derivative(partial(conv, weight=weight), x)
    assert (ours - theirs).norm() <= 1e-5 * theirs.norm()


# What torch loads for derivatives forward.
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")
def test_whoever_looks_on_is_left_to_torch(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, _ = operands((2, 16, 16, 5, 5))
    counted = Counted(monkeypatch, convolve)

    def total(weight: Tensor) -> Tensor:
        return conv(x, weight).square().sum()

    with Autocast(CPU, enabled=False):
        found = torch.func.grad(total)(weight)
        mapped = torch.func.vmap(lambda image: conv(image[None], weight))(x)
        traced = torch.fx.symbolic_trace(nn.Conv2d(16, 16, 3, padding=1))
        made = make_fx(partial(conv, bias=None))(x, weight)
        with FlopCounterMode(display=False) as flops:
            conv(x, weight)
        with forward_ad.dual_level():
            dual = forward_ad.unpack_dual(conv(forward_ad.make_dual(x, x), weight)).tangent
        with torch.autocast("cpu", torch.bfloat16):
            assert conv(x, weight).dtype == torch.bfloat16
        negative = torch.complex(x, x).conj().imag
        assert negative.is_neg()
        turned = conv(negative, weight)
        nowhere = conv(x, weight.to("meta"))
        assert conv(x.to("meta"), weight.to("meta")).shape == x.shape
    assert counted.shapes == []
    assert torch.equal(found, torch.func.grad(total)(weight))
    assert torch.equal(mapped, torch.func.vmap(lambda image: conv(image[None], weight))(x))
    assert traced(x).shape == nowhere.shape == x.shape
    assert torch.equal(made(x, weight), conv(x, weight))
    assert flops.get_total_flops() > 0
    assert dual is not None
    torch.testing.assert_close(dual, conv(x, weight))
    assert torch.equal(turned, conv(negative, weight))


def test_a_gradient_whose_sign_is_a_note_is_read_with_it(library: str) -> None:
    x, weight, grad = operands((2, 16, 16, 5, 5))
    wanted = convolve.gradients(grad, x, weight, (True, True))
    found = convolve.gradients(torch._neg_view(-grad), x, weight, (True, True))
    for one, other in zip(found, wanted, strict=True):
        assert one is not None
        assert other is not None
        assert torch.equal(one, other)


def test_a_weight_with_gaps_gets_its_gradient(library: str) -> None:
    x, plain, grad = operands((2, 16, 16, 5, 5))
    memory = torch.zeros(16 * 60000)
    weight = memory.as_strided((16, 16, 3, 3), (60000, 1001, 3000, 1000)).copy_(plain)
    assert convolve.fits(x, weight, NUMBERS)
    assert torch.equal(convolve.weight_gradient(x, grad, weight), convolve.weight_gradient(x, grad, plain))


def test_the_gradient_in_the_input_of_few_outputs_is_refused(library: str) -> None:
    _, weight, grad = operands((2, 16, 3, 5, 5))
    with pytest.raises(ValueError, match="is torch's"):
        convolve.data_gradient(grad, weight)


@pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")
@pytest.mark.parametrize("lanes", [4, 16])
def test_registers_of_any_width_do(lanes: int, tmp_path: Path) -> None:
    """Of a processor without AVX2, and of one with AVX-512, whose panels are not always full."""
    made = tmp_path / "library.so"
    flags = [*build.FLAGS, "-O1", "-w", f"-DDFQ_LANES={lanes}"]
    subprocess.run(["c++", *flags, str(build.SOURCES / "library.cpp"), "-o", str(made)], check=True)

    def same(one: Tensor | None, other: Tensor, tolerance: float = 2e-6) -> bool:
        return one is not None and bool((one.double() - other).abs().max() <= tolerance * other.abs().max())

    with binding.using(made):
        for size in ((9, 64, 64, 8, 8), (2, 144, 80, 7, 3)):
            found = zip(compiled(*operands(size)), exact(*operands(size)), strict=True)
            assert all(same(one, other, TOLERANCE) for one, other in found)
        steps = strided.Steps(2, 1)
        x, weight, grad = drawn(2, 48, 9, 8), drawn(32, 48, 3, 3), drawn(2, 32, 5, 4)
        leaves = x.double().requires_grad_(), weight.double().requires_grad_()
        F.conv2d(*leaves, stride=2, padding=1).backward(grad.double())
        for one, leaf in zip(strided.gradients(grad, x, weight, steps, (True, True)), leaves, strict=True):
            assert leaf.grad is not None
            assert same(one, leaf.grad)
        assert same(strided.convolved(x, weight, steps), F.conv2d(*leaves, stride=2, padding=1).detach())
        x, weight, grad = operands((3, 48, 3, 9, 20))
        few = [convolve.convolved(x, weight), *convolve.gradients(grad, x, weight, (True, True))]
        assert all(map(same, few, exact(x, weight, grad)))
        for size in ((5, 48, 16, 3, 4), (2, 16, 80, 19, 70)):
            x, weight, _ = operands(size)
            wanted = F.conv2d(F.interpolate(x.double(), scale_factor=2, mode="nearest"), weight.double(), padding=1)
            assert same(weave(phases_of_conv(x, weight)), wanted)
