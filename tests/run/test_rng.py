"""Global generators around plugin calls."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable

import numpy as np
import pytest
import torch

from dfqbench.run.worker.device_setup import equal_rng_states, get_rng_state, seeded, set_rng_state


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


@pytest.mark.parametrize("draw", [random.random, np.random.rand, lambda: torch.rand(())])
def test_states_are_the_same_until_a_number_is_drawn(draw: Callable[[], object]) -> None:
    before = get_rng_state()
    assert equal_rng_states(before, get_rng_state())
    draw()
    assert not equal_rng_states(before, get_rng_state())
    set_rng_state(before)
    assert equal_rng_states(before, get_rng_state())
