"""Operators of `synth` against the rules that `torch.library` has for operators."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dfqbench.synth.generators import standardize
from dfqbench.synth.moments import batch_norm_stats
from dfqbench.synth.sub_pixel import sub_pixel_norm


def leaf(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).requires_grad_()


CALLS: list[tuple[Any, tuple[Any, ...]]] = [
    (batch_norm_stats, (leaf(2, 3, 4, 4),)),
    (batch_norm_stats, (leaf(2, 3),)),
    (standardize, (leaf(2, 3, 4, 4), 1e-5)),
    (sub_pixel_norm, (leaf(2, 8, 4, 4), leaf(1, 2), leaf(1, 2), 0.8, 0.2)),
    (sub_pixel_norm, (leaf(2, 8, 4, 4), leaf(2, 2), leaf(2, 2), 0.8, 0.2)),
]


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # by opcheck itself
@pytest.mark.parametrize("call", CALLS, ids=lambda call: call[0].__name__)
def test_operator_keeps_the_rules_of_torch(call: tuple[Any, tuple[Any, ...]]) -> None:
    op, args = call
    torch.library.opcheck(getattr(torch.ops.dfqbench, op.__name__).default, args)


@pytest.mark.parametrize("rows", [1, 2])
def test_sub_pixel_norm_has_the_type_of_its_phases(rows: int) -> None:
    phases = leaf(2, 8, 4, 4).bfloat16()
    assert sub_pixel_norm(phases, torch.ones(rows, 2), torch.zeros(rows, 2), 0.8, 0.2).dtype == torch.bfloat16
