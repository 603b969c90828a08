"""Budgets: named lengths of training schedules."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from dfqbench.api.errors import unknown_name


@dataclass(frozen=True, slots=True)
class Budget:
    """A named length of training schedules.

    Attributes:
        name: `paper`, `medium`, `short` or `smoke`.
        training: factor on generator and student steps.
        images: factor on the iterations of methods that optimize images directly.
        range_floor: minimum number of steps of an activation-range phase.
    """

    name: str
    training: Fraction
    images: Fraction = Fraction(1)
    range_floor: int = 200  # methods.md 0.1: the official moving average settles in so many steps

    def training_steps(self, steps: int) -> int:
        """Scale a number of generator or student steps; at least 1 if `steps` is positive."""
        return _scaled(steps, self.training)

    def image_steps(self, steps: int) -> int:
        """Scale a number of iterations that optimize images directly; at least 1 if `steps` is positive."""
        return _scaled(steps, self.images)

    def range_steps(self, steps: int) -> int:
        """Scale the steps of an activation-range phase: at least `range_floor`, at most the published number."""
        return min(steps, max(self.range_floor, _scaled(steps, self.training)))


def _scaled(steps: int, factor: Fraction) -> int:
    return max(1, round(steps * factor)) if steps > 0 else 0


BUDGETS: dict[str, Budget] = {
    budget.name: budget
    for budget in (
        Budget("paper", training=Fraction(1)),
        Budget("medium", training=Fraction(1, 20)),
        Budget("short", training=Fraction(1, 100)),
        Budget("smoke", training=Fraction(1, 4000), images=Fraction(1, 50), range_floor=10),
    )
}
"""Every budget by name."""


def budget_named(name: str) -> Budget:
    """Return the budget of that name.

    Raises:
        UsageError: the name is not a budget.
    """
    if name not in BUDGETS:
        raise unknown_name("budget", name, BUDGETS)
    return BUDGETS[name]
