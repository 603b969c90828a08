"""The planner of mixed precision, without a network."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest

from dfqbench.api import Unavailable
from dfqbench.quantizers.bit_planner import Frontier, Layer, plan_bits

WIDTHS = (2, 4, 8)


def random_layers(count: int, seed: int) -> list[Layer]:
    """Layers whose sensitivities fall with the width, of any size."""
    rng = random.Random(seed)  # noqa: S311 - no secret
    falling = [sorted((10 ** rng.uniform(-6, 0) for _ in WIDTHS), reverse=True) for _ in range(count)]
    return [
        Layer(f"layer{i}", rng.randrange(10, 5000), dict(zip(WIDTHS, omega, strict=True)))
        for i, omega in enumerate(falling)
    ]


def total(layers: list[Layer], widths: tuple[int, ...]) -> tuple[int, float]:
    """Cost and sensitivity of a choice."""
    cost = sum(layer.cost * width for layer, width in zip(layers, widths, strict=True))
    return cost, sum(layer.sensitivity[width] for layer, width in zip(layers, widths, strict=True))


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 7])
def test_choice_is_the_best_of_all(bits: int) -> None:
    for seed in range(10):
        layers = random_layers(5, seed)
        budget = bits * sum(layer.cost for layer in layers)
        choices = [widths for widths in itertools.product(WIDTHS, repeat=5) if total(layers, widths)[0] <= budget]
        best = min(choices, key=lambda widths: total(layers, widths)[1])
        assert tuple(plan_bits(layers, budget).values()) == best


def test_frontier_holds_every_choice_that_no_other_one_beats() -> None:
    layers = random_layers(5, seed=1)
    frontier = Frontier(layers)
    assert (np.diff(frontier.costs) > 0).all()
    assert (np.diff(frontier.sensitivities) < 0).all()
    every = [total(layers, widths) for widths in itertools.product(WIDTHS, repeat=5)]
    best = [(c, s) for c, s in every if not any((a <= c and b < s) or (a < c and b <= s) for a, b in every)]
    assert list(zip(frontier.costs, frontier.sensitivities, strict=True)) == sorted(best)
    for number in range(len(frontier)):
        widths = tuple(frontier.widths(number).values())
        assert total(layers, widths) == (frontier.costs[number], frontier.sensitivities[number])


def test_budget_of_the_largest_width_gives_it_to_every_layer() -> None:
    layers = random_layers(20, seed=2)
    widths = plan_bits(layers, 8 * sum(layer.cost for layer in layers))
    assert widths == dict.fromkeys((layer.name for layer in layers), 8)


def test_more_budget_never_costs_accuracy() -> None:
    layers = random_layers(12, seed=3)
    one_bit = sum(layer.cost for layer in layers)
    plans = [tuple(plan_bits(layers, budget * one_bit / 10).values()) for budget in range(20, 90)]
    losses = [total(layers, widths)[1] for widths in plans]
    assert losses == sorted(losses, reverse=True)


def test_unreachable_budget_is_refused_in_one_line() -> None:
    layers = random_layers(3, seed=4)
    with pytest.raises(Unavailable, match=r"leaves 1\.50 bits for a weight, and the least widths are 2\.00; raise"):
        plan_bits(layers, 1.5 * sum(layer.cost for layer in layers))


def test_a_hundred_layers_are_planned_at_once() -> None:
    layers = random_layers(100, seed=5)
    assert len(plan_bits(layers, 4 * sum(layer.cost for layer in layers))) == 100
