"""Global generators around plugin calls."""

from __future__ import annotations

import contextlib
import random

import numpy as np
import torch

from dfqbench.run.rng import seeded


def draws() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: S311 - the globals are tested


def test_same_seed_same_numbers_and_the_caller_is_undisturbed() -> None:
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    expected = draws()
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    with seeded(2**62):
        first = draws()
    assert draws() == expected
    with seeded(2**62):
        assert draws() == first
    with seeded(3):
        assert draws() != first


def test_an_exception_restores_too() -> None:
    torch.manual_seed(4)
    expected = torch.rand(())
    torch.manual_seed(4)
    with contextlib.suppress(KeyError), seeded(9):
        raise KeyError
    assert torch.equal(torch.rand(()), expected)
