"""Operators of `quant` against the rules that `torch.library` has for operators."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dfqbench.quant.batch_norm import batch_norm_act
from dfqbench.quant.fake_quantize import fake_quantize, fake_quantize_channels
from dfqbench.quant.integer_conv import integer_conv2d
from dfqbench.quant.operators import operator


def leaf(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).requires_grad_()


SCALE, SHIFT = torch.tensor(2.0), torch.tensor(-3.0)
CALLS: list[tuple[Any, tuple[Any, ...]]] = [
    (fake_quantize, (leaf(3, 5), SCALE, SHIFT, 4)),
    (fake_quantize_channels, (leaf(3, 2, 3, 3), 4)),
    (batch_norm_act, (leaf(2, 3, 4, 4), leaf(2, 3, 1, 1), leaf(3), leaf(3), torch.zeros(3), torch.ones(3), 1e-5, 6.0)),
    (batch_norm_act, (leaf(2, 3, 4, 4), None, None, None, torch.zeros(3), torch.ones(3), 1e-5, torch.inf)),
    (
        integer_conv2d,
        (leaf(2, 4, 5, 5), leaf(6, 2, 3, 3), SCALE, torch.ones(6, 1, 1, 1), [2, 2], [1, 1], [1, 1], 2),
    ),
]


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # by opcheck itself
@pytest.mark.parametrize("call", CALLS, ids=lambda call: call[0].__name__)
def test_operator_keeps_the_rules_of_torch(call: tuple[Any, tuple[Any, ...]]) -> None:
    op, args = call
    torch.library.opcheck(getattr(torch.ops.dfqbench, op.__name__).default, args)


def test_operator_computes_its_definition() -> None:
    @operator
    def operator_of_a_test(x: Tensor, number: float) -> Tensor:
        """Return the product."""
        return x * number

    x = leaf(3)
    out = operator_of_a_test(x, number=2.0)
    assert torch.equal(out, 2 * x)
    assert torch.equal(out, operator_of_a_test.__wrapped__(x, 2.0))  # type: ignore[attr-defined]
    assert torch.equal(torch.autograd.grad(out.sum(), x)[0], torch.full((3,), 2.0))
    assert operator_of_a_test.__doc__ == "Return the product."
