"""What tests of a student's units share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, fx

from dfqbench.quant import Student
from dfqbench.quant.units import conv_output, inner_output, unit_output


def calls(student: Student) -> tuple[int, int]:
    """How many units there are beside residual blocks, and residual blocks."""
    assert isinstance(student.network, fx.GraphModule)
    found = Counter(node.target for node in student.network.graph.nodes)
    assert found[conv_output] == found[unit_output] + found[inner_output]
    return found[unit_output] - found[inner_output], found[inner_output]


@contextmanager
def one_after_another() -> Iterator[None]:
    """Without units."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dfqbench.quant.units.are_compiled", lambda _device: False)
        yield


def assert_alike(
    found: tuple[Tensor, list[Tensor]], expected: tuple[Tensor, list[Tensor]], *, same_order: bool = True
) -> None:
    """Same bits, but for gradients of scales and shifts; for all where gradients are summed in another order."""
    assert torch.equal(found[0], expected[0])
    assert len(found[1]) == len(expected[1]) > 3
    for one, other in zip(found[1], expected[1], strict=True):
        assert not same_order or one.ndim != 4 or torch.equal(one, other)
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * float(other.abs().max()) + 1e-7)
