"""The planner of mixed precision: widths for layers that cost accuracy least within a budget; no network, no files.

Layers are taken one after the other. Of the choices for the first i layers only those on the Pareto frontier are kept:
no other one is both smaller and better. Sensitivities are added over the layers (ZeroQ, Cai et al., CVPR 2020).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dfqbench.api.errors import Unavailable


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer that gets a width.

    Attributes:
        name: dotted name.
        cost: cost of one bit of width: weights, or multiply-accumulates times bits of their input.
        sensitivity: what each width costs in accuracy, by width.
    """

    name: str
    cost: int
    sensitivity: Mapping[int, float]


class Frontier:
    """Every best choice of widths for some layers: the more it costs, the less accuracy it loses.

    Attributes:
        costs: int64 (N,), cost of each choice, strictly rising.
        sensitivities: float64 (N,), their sums of sensitivities, strictly falling.

    Args:
        layers: each with its widths.
    """

    def __init__(self, layers: Sequence[Layer]) -> None:
        self._layers = layers
        self.costs: NDArray[np.int64] = np.zeros(1, dtype=np.int64)
        self.sensitivities: NDArray[np.float64] = np.zeros(1)
        # For each layer: width of each choice, and its number on the frontier of the layers before.
        self._widths: list[NDArray[np.int64]] = []
        self._before: list[NDArray[np.int64]] = []
        for layer in layers:
            self._add(layer)

    def _add(self, layer: Layer) -> None:
        widths = np.array(sorted(layer.sensitivity), dtype=np.int64)
        losses = np.array([layer.sensitivity[int(width)] for width in widths])
        costs = (self.costs[:, None] + layer.cost * widths).ravel()
        sensitivities = (self.sensitivities[:, None] + losses).ravel()
        # By cost; of equal ones the best first.
        order = np.lexsort((sensitivities, costs))
        best_before = np.minimum.accumulate(np.concatenate(([np.inf], sensitivities[order][:-1])))
        kept = order[sensitivities[order] < best_before]
        self.costs, self.sensitivities = costs[kept], sensitivities[kept]
        self._widths.append(widths[kept % len(widths)])
        self._before.append(kept // len(widths))

    def __len__(self) -> int:
        """Return the number of choices."""
        return len(self.costs)

    def widths(self, number: int) -> dict[str, int]:
        """Return the width of each layer, by name, of a choice from 0."""
        chosen: dict[str, int] = {}
        for layer, widths, before in zip(
            reversed(self._layers), reversed(self._widths), reversed(self._before), strict=True
        ):
            chosen[layer.name] = int(widths[number])
            number = int(before[number])
        return dict(reversed(chosen.items()))


def plan_bits(layers: Sequence[Layer], most: float) -> dict[str, int]:
    """Return the width of each layer, by name, with the least sum of sensitivities that costs no more than `most`.

    Raises:
        Unavailable: the least widths cost more.
    """
    frontier = Frontier(layers)
    number = int(np.searchsorted(frontier.costs, most, side="right")) - 1
    if number < 0:
        one_bit = sum(layer.cost for layer in layers) or 1
        least = frontier.costs[0] / one_bit
        raise Unavailable(
            f"the budget leaves {max(most, 0) / one_bit:.2f} bits for a weight, and the least widths are {least:.2f}",
            "raise the budget",
        )
    return frontier.widths(number)
