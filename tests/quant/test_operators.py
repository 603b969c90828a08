from __future__ import annotations

import torch
from torch import Tensor

from dfqbench.quant.operators import operator


def test_operator_computes_its_definition() -> None:
    @operator
    def operator_of_a_test(x: Tensor, number: float) -> Tensor:
        """Return the product."""
        return x * number

    x = torch.randn(3, requires_grad=True)
    out = operator_of_a_test(x, number=2.0)
    assert torch.equal(out, 2 * x)
    assert torch.equal(out, operator_of_a_test.__wrapped__(x, 2.0))  # type: ignore[attr-defined]
    assert torch.equal(torch.autograd.grad(out.sum(), x)[0], torch.full((3,), 2.0))
    assert operator_of_a_test.__doc__ == "Return the product."
