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


def test_seeded_gives_same_numbers_and_restores_the_callers_generators() -> None:
    before = get_rng_state()
    expected = draws()
    set_rng_state(before)
    with seeded(2**62):
        first = draws()
    with contextlib.suppress(KeyError), seeded(2**62):
        assert draws() == first
        raise KeyError
    with seeded(3):
        assert draws() != first
    assert draws() == expected


@pytest.mark.parametrize("draw", [random.random, np.random.rand, lambda: torch.rand(())])
def test_rng_states_are_equal_until_a_number_is_drawn(draw: Callable[[], object]) -> None:
    before = get_rng_state()
    assert equal_rng_states(before, get_rng_state())
    draw()
    assert not equal_rng_states(before, get_rng_state())
    set_rng_state(before)
    assert equal_rng_states(before, get_rng_state())
