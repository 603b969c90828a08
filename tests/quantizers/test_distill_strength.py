from __future__ import annotations

import dataclasses
from typing import Literal

import pytest
import torch

from dfqbench.quantizers.distill import Distill
from dfqbench.quantizers.distill_losses import kd_loss
from dfqbench.quantizers.distill_params import DistillParams
from dfqbench.quantizers.distill_strength import strength

DFFG = dataclasses.replace(DistillParams(), alpha=20.0, reduction="batchmean", lr=1e-5)
TABLE = {
    "gdfq": (0.005, 5e-5, 5e-7, 5e-7),
    "clusterq": (0.05, 0.005, 5e-4, 5e-6),
    "kmdfq": (0.1, 0.01, 0.001, 1e-5),
    "temporal": (0.1, 0.01, 0.001, 1e-5),
    "intraq": (1.0, 0.1, 0.01, 1e-4),
    "dffg": (1.0, 0.1, 0.01, 1e-5),
    "adadfq": (0.05, 0.005, 5e-4, 5e-6),
    "hast": (2.0, 0.2, 0.02, 2e-5),
}
"""Coefficients for 10, 100 and 1,000 classes, and the product for ten (methods.md 0.6)."""


@pytest.mark.parametrize("recipe", TABLE)
def test_strength_is_that_of_the_published_table(recipe: str) -> None:
    params = {"dffg": DFFG, **Distill.recipes}[recipe]
    found = [strength(params, classes) for classes in (10, 100, 1000)]
    assert [entry.coefficient for entry in found] == pytest.approx(TABLE[recipe][:3])
    assert found[0].product == pytest.approx(TABLE[recipe][3])
    assert [entry.lr for entry in found] == [params.lr, params.lr, params.lr_large]


@pytest.mark.parametrize("reduction", ["mean", "batchmean"])
def test_strength_is_the_second_order_of_the_loss(reduction: Literal["mean", "batchmean"]) -> None:
    params = dataclasses.replace(DistillParams(), alpha=3.0, reduction=reduction)
    random = torch.Generator().manual_seed(0)
    teacher = torch.randn(4, 10, generator=random, dtype=torch.float64)
    change = 1e-2 * torch.randn(4, 10, generator=random, dtype=torch.float64)
    change -= change.mean(1, keepdim=True)
    loss = 3.0 * kd_loss(teacher, teacher + change, params.temperature, params.reduction)
    # Teacher's probabilities at T = 20 are nearly, not quite, equal.
    assert float(loss / change.square().sum(1).mean()) == pytest.approx(strength(params, 10).coefficient, rel=0.1)
