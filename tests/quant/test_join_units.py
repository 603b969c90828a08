"""Which units of a traced network are joined."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.native.convolutions import counted_units
from tests.quant.test_blocks import images, passed, student_of
from tests.quant.units import assert_alike, calls, one_after_another
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock

from dfqbench.quant import Student


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


def middle(piece: Callable[[], nn.Module]) -> nn.Module:
    """With the same weights each time."""
    torch.manual_seed(0)
    return Middle(piece())


def without_units(network: nn.Module) -> Student:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dfqbench.quant.student.join_units", lambda _traced: None)
        return student_of(network)


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


class Two(nn.Module):
    """Two convolutions and more, called as is given."""

    def __init__(self, order: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.conv1, self.conv2 = (nn.Conv2d(16, 16, 3, padding=1, bias=False) for _ in range(2))
        self.norm1, self.norm2 = nn.BatchNorm2d(16), nn.BatchNorm2d(16)
        self.same = nn.Identity()
        self.block = BasicBlock(16, 16)
        self.order = order

    def forward(self, x: Tensor) -> Tensor:
        return self.order(self, x)

    def one(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm1(self.conv1(x))
        return out

    def two(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm2(self.conv2(x))
        return out


def two_sums(two: Two, x: Tensor) -> Tensor:
    return F.relu(two.two(F.relu(two.one(x) + x)) + x)


def inner_read_twice(two: Two, x: Tensor) -> Tensor:
    inner = F.relu(two.one(x))
    return F.relu(two.two(inner) + x) + inner


def identity_read_twice(two: Two, x: Tensor) -> Tensor:
    inner = two.two(F.relu(two.one(x)))
    same = two.same(x)
    return F.relu(inner + same) + same


def identity_first(two: Two, x: Tensor) -> Tensor:
    same = two.same(x)
    return F.relu(two.two(F.relu(two.one(x))) + same)


def identity_between(two: Two, x: Tensor) -> Tensor:
    inner = two.two(F.relu(two.one(x)))
    return F.relu(inner + two.same(x))


def identity_by_keyword(two: Two, x: Tensor) -> Tensor:
    inner = two.two(F.relu(two.one(x)))
    return F.relu(inner + two.same(input=x))


def interleaved(two: Two, x: Tensor) -> Tensor:
    inner = F.relu(two.one(x))
    return F.relu(two.two(inner) + x) + two.block(x)


def layers_between(two: Two, x: Tensor) -> Tensor:
    inner = F.relu(two.one(x))
    other = two.block(x)
    return F.relu(two.two(inner) + x) + other


def by_keyword(two: Two, x: Tensor) -> Tensor:
    return F.relu(two.norm1(two.conv1(input=x)))


def by_size(two: Two, x: Tensor) -> Tensor:
    return F.relu(two.one(x) + x.shape[1])


@pytest.mark.parametrize(
    ("piece", "units", "pairs", "compiled"),
    [
        (lambda: Piece(relu), 1, 0, 1),
        (lambda: Piece(added), 1, 0, 1),
        (lambda: Piece(lambda x, taken: F.relu(x + -taken)), 1, 0, 1),
        (lambda: Piece(lambda x, taken: F.relu(x + taken.neg())), 0, 0, 0),
        (lambda: Piece(lambda x, taken: F.relu(x + taken.clone().relu_())), 0, 0, 0),
        (lambda: Piece(lambda x, taken: F.relu(x + taken[:1])), 1, 0, 0),
        (lambda: Piece(lambda x, taken: F.relu(x.add_(taken))), 1, 0, 1),
        (lambda: Piece(lambda x, _: F.relu(x).mul(2)), 1, 0, 1),
        (lambda: Piece(relu, nn.Conv2d(16, 16, 3, stride=2, padding=1, bias=False)), 0, 0, 0),
        (lambda: Piece(relu, nn.Conv2d(16, 16, 1, bias=False)), 0, 0, 0),
        (lambda: Piece(relu, nn.Conv2d(16, 16, 3, padding=2, bias=False)), 0, 0, 0),
        (lambda: Piece(relu, nn.Conv2d(16, 16, 3, padding=1)), 0, 0, 0),
        (lambda: Piece(relu, nn.Conv2d(16, 16, 3, padding=1, bias=False, groups=4)), 0, 0, 0),
        (lambda: Piece(relu, nn.Conv2d(16, 16, 3, padding=1, bias=False, dilation=2)), 0, 0, 0),
        (lambda: Piece(relu, nn.Conv2d(16, 16, 3, padding=1, bias=False, padding_mode="circular")), 1, 0, 0),
        (lambda: Piece(relu, Doubled(16, 16, 3, padding=1, bias=False)), 1, 0, 0),
        (lambda: Piece(relu, Halved(16, 16, 3, padding=1, bias=False)), 1, 0, 0),
        (lambda: nn.Sequential(Piece(relu), Piece(relu)), 2, 0, 2),
        (lambda: nn.Sequential(Piece(relu), Piece(added)), 2, 0, 2),
        (lambda: BasicBlock(16, 16), 0, 1, 2),
        (lambda: nn.Sequential(BasicBlock(16, 16), BasicBlock(16, 16)), 0, 2, 4),
        (lambda: Two(two_sums), 2, 0, 2),
        (lambda: Two(inner_read_twice), 2, 0, 2),
        (lambda: Two(identity_read_twice), 0, 1, 2),
        (lambda: Two(identity_first), 0, 1, 2),
        (lambda: Two(identity_between), 0, 1, 2),
        (lambda: Two(identity_by_keyword), 1, 0, 1),
        (lambda: Two(interleaved), 0, 2, 4),
        (lambda: Two(layers_between), 2, 1, 4),
        (lambda: Two(by_keyword), 0, 0, 0),
        (lambda: Two(by_size), 1, 0, 0),
    ],
)
def test_what_is_joined(library: str, piece: Callable[[], nn.Module], units: int, pairs: int, compiled: int) -> None:
    student, plain = student_of(middle(piece)), without_units(middle(piece))
    assert calls(student) == (units, pairs)
    assert calls(plain) == (0, 0)
    assert list(student.layers.items()) == list(plain.layers.items())
    with counted_units() as shapes:
        found = passed(student)
    assert len(shapes) == compiled
    with one_after_another():
        assert_alike(found, passed(student), same_order=False)
    assert_alike(found, passed(plain), same_order=False)
    with torch.no_grad():
        assert torch.equal(student(images()), plain(images()))


class Doubled(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * 2


class Halved(nn.Conv2d):
    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(input, weight, bias) / 2


@pytest.mark.parametrize(
    "change",
    [
        lambda x: torch.mul(x, 2, out=x),
        lambda x: x.add_(1),
        lambda x: x.__imul__(2),
        lambda x: F.relu(x, inplace=True),
        lambda x: F.pad(x.mul_(3), (1, 1)),
    ],
)
@pytest.mark.parametrize("inside", [True, False])
def test_what_is_changed_in_between_is_not_read_later(
    library: str, change: Callable[[Tensor], Tensor], inside: bool
) -> None:
    def one(two: Two, x: Tensor) -> Tensor:
        out = two.conv1(x)
        change(x)
        return F.relu(two.norm1(out) + x)

    def both(two: Two, x: Tensor) -> Tensor:
        inner = F.relu(two.one(x))
        change(x)
        return F.relu(two.two(inner) + x)

    order = one if inside else both
    student, plain = student_of(middle(lambda: Two(order))), without_units(middle(lambda: Two(order)))
    with torch.no_grad():
        assert torch.equal(student(images()), plain(images()))
