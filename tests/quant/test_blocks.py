"""A student's blocks: what is joined, and that nothing but rounding tells."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from dfqbench.api import ModelCard
from dfqbench.models.cifar import CifarResNet
from dfqbench.native import binding, passes
from dfqbench.quant import Student, parse_scheme, prepare
from dfqbench.quant import blocks as room
from dfqbench.quant.frozen import FrozenBatchNorm2d
from dfqbench.quant.quantizers import ActivationQuantizer
from dfqbench.quant.trace import trace
from dfqbench.quant.units import inner_output, unit_output

CARD = ModelCard((3, 16, 16), (0.0,) * 3, (1.0,) * 3, 10)


def images(count: int = 8) -> Tensor:
    x = torch.randn(count, *CARD.input_size, generator=torch.Generator().manual_seed(5))
    return x.contiguous(memory_format=torch.channels_last)


def student_of(network: nn.Module, scheme: str = "w4a4") -> Student:
    """With learned ranges; no BatchNorm layer scales by 1 or shifts by 0."""
    random = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.copy_(torch.randn(module.weight.shape, generator=random))
                module.bias.copy_(torch.randn(module.bias.shape, generator=random))
        network.train()(images())
        student = prepare(network.eval(), parse_scheme(scheme), CARD)
        with student.observing("minmax"):
            student(images())
    return student


def unjoined(network: nn.Module, scheme: str) -> Student:
    """The same student without blocks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dfqbench.quant.student.join_blocks", lambda _traced: None)
        student = student_of(network, scheme)
    assert joined(student) == 0
    return student


def joined(student: Student) -> int:
    """How many blocks there are, those within units included."""
    assert isinstance(student.network, fx.GraphModule)
    blocks = {room.block_output, inner_output, unit_output}
    return sum(node.target in blocks for node in student.network.graph.nodes)


def only_block(student: Student) -> tuple[FrozenBatchNorm2d, ActivationQuantizer]:
    assert isinstance(student.network, fx.GraphModule)
    (node,) = (node for node in student.network.graph.nodes if node.target is room.block_output)
    layer, quantizer = (student.network.get_submodule(str(part.target)) for part in node.args[:2])
    assert isinstance(layer, FrozenBatchNorm2d)
    assert isinstance(quantizer, ActivationQuantizer)
    return layer, quantizer


def resnet(shortcut: Literal["A", "B"] = "A") -> nn.Module:
    torch.manual_seed(0)
    return CifarResNet(8, 10, shortcut)


class Small(nn.Module):
    """A block whose end is given."""

    def __init__(self, end: Callable[..., Tensor], alias: nn.Module | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.relu = nn.ReLU()
        self.last = nn.Linear(8, 10)
        self.end = end
        self.alias = alias

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        residual = x - 0.5
        taken = self.conv(x)
        if self.alias is None:
            x = self.end(self.norm(taken), residual)
        else:
            normed = self.norm(self.alias(taken))
            x = F.relu(normed + taken.mul_(-2))
        return self.last(x.mean((2, 3)))


def passed(student: Student, *, codes: bool = False) -> tuple[Tensor, list[Tensor]]:
    """Logits, and gradients of images and parameters."""
    student.zero_grad()
    student.grid_convolutions = codes
    x = images().requires_grad_()
    logits = student(x)
    logits.square().sum().backward()
    found = [x.grad, *(p.grad for p in student.parameters())]
    return logits.detach(), [grad.clone() for grad in found if grad is not None]


@pytest.mark.parametrize("shortcut", ["A", "B"])
@pytest.mark.parametrize("codes", [False, True])
def test_a_students_gradients_are_those_of_its_modules(library: str, shortcut: Literal["A", "B"], codes: bool) -> None:
    # Eight bits: a number that falls to the other side of a rounding moves little.
    student, other_student = student_of(resnet(shortcut), "w8a8"), unjoined(resnet(shortcut), "w8a8")
    assert joined(student) == 7
    logits, grads = passed(student, codes=codes)
    with binding.using(None):
        expected, others = passed(other_student, codes=codes)
    assert len(grads) == len(others) > 20
    tolerance = 0.05 if codes else 0.01
    for one, other in zip([logits, *grads], [expected, *others], strict=True):
        assert float((one - other).norm()) <= tolerance * float(other.norm()) + 1e-5


def test_one_block_has_the_values_and_gradients_of_its_modules(library: str) -> None:
    student = student_of(Small(lambda x, residual: F.relu(x + residual)))
    layer, quantizer = only_block(student)
    x, residual = torch.randn(2, 4, 8, 9, 9).unbind()
    x, residual = (t.contiguous(memory_format=torch.channels_last) for t in (x, residual))
    grad = torch.randn(4, 8, 9, 9)

    def found() -> list[Tensor]:
        leaves = [x.clone().requires_grad_(), residual.clone().requires_grad_()]
        layer.zero_grad()
        out = room.block_output(layer, quantizer, *leaves)
        out.backward(grad)
        grads = [t.grad.clone() for t in (*leaves, *layer.parameters()) if t.grad is not None]
        assert len(grads) == 4
        return [out.detach(), *grads]

    compiled = found()
    with binding.using(None):
        expected = found()
    assert float(compiled[0].unique().numel()) <= 16
    apart = (compiled[0] - expected[0]).abs() * quantizer.scale
    assert int((apart > 0.5).sum()) <= 2  # half-way between two points
    for one, other in zip(compiled[1:], expected[1:], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("residual", [False, True])
def test_codes_are_the_integers_of_the_output(library: str, residual: bool) -> None:
    ends: list[Callable[..., Tensor]] = [lambda x, _: F.relu(x), lambda x, other: F.relu(x + other)]
    student = student_of(Small(ends[residual]))
    layer, quantizer = only_block(student)
    quantizer.keep_codes = True
    x = torch.randn(4, 8, 9, 9).contiguous(memory_format=torch.channels_last)
    out: Any = room.block_output(layer, quantizer, x, x if residual else None)
    grid = out._dfqbench_grid
    assert grid.codes.dtype == torch.bfloat16
    torch.testing.assert_close(grid.codes.float(), out.detach() * grid.scale, rtol=1e-6, atol=1e-5)
    assert torch.equal(grid.codes.float(), grid.codes.float().round())


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
    ("end", "count"),
    [
        (lambda x, _: F.relu(x), 1),
        (lambda x, residual: F.relu(residual + x), 1),
        (in_place, 1),
        (into_the_residual, 0),
        (read_twice, 0),
        (something_between, 0),
        (lambda x, _: F.relu6(x), 0),
        (lambda x, residual: F.relu(torch.add(x, residual, alpha=2)), 0),
        (lambda x, _: F.relu(x + 1), 0),
    ],
)
def test_what_is_joined(library: str, end: Callable[..., Tensor], count: int) -> None:
    student = student_of(Small(end), "w8a8")
    assert joined(student) == count
    logits, grads = passed(student)
    with binding.using(None):
        expected, others = passed(unjoined(Small(end), "w8a8"))
    for one, other in zip([logits, *grads], [expected, *others], strict=True):
        assert float((one - other).norm()) <= 0.01 * float(other.norm()) + 1e-5


@pytest.mark.parametrize("alias", [nn.Identity(), nn.Dropout(), nn.Flatten(3)])
def test_what_others_change_is_not_read_later(library: str, alias: nn.Module) -> None:
    network = Small(lambda x, _: x, alias)
    student = student_of(network, "w8a8")
    with torch.no_grad():
        found, expected = student(images()), network(images())
        assert float((found - expected).norm()) <= 0.05 * float(expected.norm())
        assert torch.equal(found, unjoined(Small(lambda x, _: x, alias), "w8a8")(images()))


def test_a_number_may_be_added(library: str) -> None:
    student = student_of(Small(lambda x, other: F.relu(x + other.size(1))), "w8a8")
    assert joined(student) == 1
    assert passed(student)[0].isfinite().all()


def test_modules_may_be_replaced_afterwards(library: str) -> None:
    student = student_of(Small(lambda x, _: F.relu(x)), "w8a8")
    before = passed(student)[0]
    layer = student.network.norm
    assert isinstance(layer, nn.BatchNorm2d)
    plain = nn.BatchNorm2d(8).eval()
    plain.load_state_dict(layer.state_dict())
    student.network.norm = plain
    assert float((passed(student)[0] - before).norm()) <= 0.01 * float(before.norm())
    student.network.norm = nn.Identity()
    assert float((passed(student)[0] - before).norm()) > 0.01 * float(before.norm())


def test_a_student_can_be_traced_again(library: str) -> None:
    student = student_of(resnet())
    again = trace(student.network)
    x = images().requires_grad_()
    assert torch.equal(again(x), student(x))


def test_names_state_and_copies_stay(library: str) -> None:
    network = resnet()
    student = student_of(network)
    names = {name for name, _ in network.named_parameters()}
    mine = {
        name.replace(".parametrizations.weight.original", ".weight") for name, _ in student.network.named_parameters()
    }
    assert mine == names
    copied = copy.deepcopy(student)
    assert list(copied.state_dict()) == list(student.state_dict())
    logits, grads = passed(copied)
    expected, others = passed(student)
    assert torch.equal(logits, expected)
    assert all(torch.equal(one, other) for one, other in zip(grads, others, strict=True))
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.mul_(1.5)
    assert torch.equal(passed(student)[0], expected)


def test_whoever_listens_to_a_module_hears_it(library: str) -> None:
    student = student_of(resnet())
    heard: list[str] = []
    for name, module in student.network.named_modules():
        if isinstance(module, nn.BatchNorm2d) or module in student.activation_quantizers():
            module.register_forward_hook(lambda _m, _args, _out, name=name: heard.append(name))
    student(images().requires_grad_())
    assert len(heard) == len(set(heard)) == 7 + 7


def test_ranges_are_learned_while_gradients_are_on(library: str) -> None:
    student = student_of(resnet())
    before = [float(quantizer.range.high) for quantizer in student.activation_quantizers()]
    with student.observing("minmax"):
        student(3 * images().requires_grad_())
    after = [float(quantizer.range.high) for quantizer in student.activation_quantizers()]
    assert all(new > old for new, old in zip(after, before, strict=True))


def test_evaluation_never_joins(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    student = student_of(resnet())

    def fail(*_args: object, **_kwargs: object) -> None:
        raise AssertionError("evaluation must compute as without the compiled passes")

    monkeypatch.setattr(passes, "rounded_block", fail)
    with torch.no_grad():
        student(images())
    with pytest.raises(AssertionError, match="must compute"):
        student(images().requires_grad_())


@pytest.mark.parametrize("compiled", [True, False])
def test_an_evaluated_block_rounds_in_place_unless_somebody_listens(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, compiled: bool
) -> None:
    if compiled:
        request.getfixturevalue("library")
    student = student_of(CifarResNet(8))
    calls: list[int] = []
    plain = ActivationQuantizer.over

    def counted(self: ActivationQuantizer, x: Tensor) -> Tensor:
        calls.append(x.data_ptr())
        out = plain(self, x)
        assert out.data_ptr() == x.data_ptr()
        return out

    monkeypatch.setattr(ActivationQuantizer, "over", counted)
    with torch.no_grad():
        over = student(images())
        assert len(calls) == joined(student) == 7
        outputs: list[tuple[Tensor, Tensor]] = []
        norms = [module for module in student.modules() if isinstance(module, FrozenBatchNorm2d)]
        for norm in norms:
            norm.register_forward_hook(lambda _norm, _x, out: outputs.append((out, out.clone())))
        listened = student(images())
    assert len(calls) == 7
    assert torch.equal(over, listened)
    assert len(outputs) == 7
    assert all(torch.equal(kept, copied) for kept, copied in outputs)


def test_whoever_listens_to_all_modules_of_a_process_is_heard() -> None:
    student = student_of(CifarResNet(8))
    outputs: list[tuple[Tensor, Tensor]] = []

    def listen(module: nn.Module, _x: object, out: object) -> None:
        if isinstance(module, FrozenBatchNorm2d) and isinstance(out, Tensor):
            outputs.append((out, out.clone()))

    with torch.no_grad():
        expected = student(images())
        handle = torch.nn.modules.module.register_module_forward_hook(listen)
        try:
            found = student(images())
        finally:
            handle.remove()
    assert torch.equal(found, expected)
    assert len(outputs) == 7
    assert all(torch.equal(kept, copied) for kept, copied in outputs)
