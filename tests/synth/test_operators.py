"""Operators of `quant` and `synth` against the rules that `torch.library` has for operators."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dfqbench.quant.batch_norm import batch_norm_act
from dfqbench.quant.fake_quantize import fake_quantize, fake_quantize_channels
from dfqbench.quant.integer_conv import integer_conv2d
from dfqbench.synth.generators import standardize
from dfqbench.synth.moments import batch_norm_stats
from dfqbench.synth.sub_pixel import sub_pixel_norm


def leaf(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).requires_grad_()


SCALE, ZERO_POINT = torch.tensor(2.0), torch.tensor(-3.0)
CALLS: list[tuple[Any, tuple[Any, ...]]] = [
    (fake_quantize, (leaf(3, 5), SCALE, ZERO_POINT, 4)),
    (fake_quantize_channels, (leaf(3, 2, 3, 3), 4)),
    (batch_norm_act, (leaf(2, 3, 4, 4), leaf(2, 3, 1, 1), leaf(3), leaf(3), torch.zeros(3), torch.ones(3), 1e-5, 6.0)),
    (batch_norm_act, (leaf(2, 3, 4, 4), None, None, None, torch.zeros(3), torch.ones(3), 1e-5, torch.inf)),
    (integer_conv2d, (leaf(2, 4, 5, 5), leaf(6, 2, 3, 3), SCALE, torch.ones(6, 1, 1, 1), [2, 2], [1, 1], [1, 1], 2)),
    (batch_norm_stats, (leaf(2, 3, 4, 4),)),
    (batch_norm_stats, (leaf(2, 3),)),
    (standardize, (leaf(2, 3, 4, 4), 1e-5)),
    (sub_pixel_norm, (leaf(2, 8, 4, 4), leaf(1, 2), leaf(1, 2), 0.8, 0.2)),
    (sub_pixel_norm, (leaf(2, 8, 4, 4), leaf(2, 2), leaf(2, 2), 0.8, 0.2)),
]


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # by opcheck itself
@pytest.mark.parametrize(("op", "args"), CALLS, ids=[op.__name__ for op, _ in CALLS])
def test_operator_keeps_the_rules_of_torch(op: Any, args: tuple[Any, ...]) -> None:
    torch.library.opcheck(getattr(torch.ops.dfqbench, op.__name__).default, args)


@pytest.mark.parametrize("rows", [1, 2])
def test_sub_pixel_norm_has_the_type_of_its_phases(rows: int) -> None:
    phases = leaf(2, 8, 4, 4).bfloat16()
    assert sub_pixel_norm(phases, torch.ones(rows, 2), torch.zeros(rows, 2), 0.8, 0.2).dtype == torch.bfloat16
