from __future__ import annotations

import copy

import pytest
import torch

from dfqbench.synth import DevicePlateau


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("patience", [0, 3, 10])
def test_plateau_follows_torchs(seed: int, patience: int) -> None:
    random = torch.Generator().manual_seed(seed)
    losses = torch.randn(200, generator=random) * 0.3 - torch.linspace(0, 1, 200) + 3
    losses[50:80] = losses[49]  # a flat stretch: equal losses are not better
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=patience, min_lr=1e-3)
    lr = torch.tensor(0.5)
    ours = DevicePlateau(lr, factor=0.5, patience=patience, min_lr=1e-3)
    for loss in losses:
        theirs.step(float(loss))
        ours.step(loss)
        assert float(lr) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-6)
    assert ours.lr is lr
    assert float(lr) < 0.5


def test_plateau_resumes_from_state() -> None:
    first, second = (DevicePlateau(torch.tensor(lr), factor=0.1, patience=4, min_lr=0.0) for lr in (1.0, 7.0))
    for _ in range(7):
        first.step(torch.tensor(1.0))
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for plateau in (first, second):
        for _ in range(5):
            plateau.step(torch.tensor(1.0))
        assert float(plateau.lr) == pytest.approx(0.01)
