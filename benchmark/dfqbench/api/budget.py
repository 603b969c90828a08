"""Budgets: named lengths of schedules, so that a sweep's cost is a choice and is printed beside its numbers."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from dfqbench.api.errors import unknown_name

RANGE_STEPS_FLOOR = 200
"""Fewest steps of an activation-range phase outside `smoke` (methods.md 0.1: the official EMA settles by then)."""


@dataclass(frozen=True, slots=True)
class Budget:
    """A named length of schedules.

    Attributes:
        name: `paper`, `medium`, `short` or `smoke`.
        training: factor on generator and student steps.
        images: factor on the iterations of methods that learn images directly.
        range_floor: fewest steps of an activation-range phase.
    """

    name: str
    training: Fraction
    images: Fraction
    range_floor: int

    def training_steps(self, steps: int) -> int:
        """Scales a number of generator or student steps; at least 1 where `steps` is positive."""
        return _scaled(steps, self.training)

    def image_steps(self, steps: int) -> int:
        """Scales a number of iterations that update images directly; at least 1 where `steps` is positive."""
        return _scaled(steps, self.images)

    def range_steps(self, steps: int) -> int:
        """Scales the steps of an activation-range phase, never below the floor (nor above the published number)."""
        return min(steps, max(self.range_floor, _scaled(steps, self.training)))


def _scaled(steps: int, factor: Fraction) -> int:
    if steps <= 0:
        return 0
    return max(1, round(steps * factor))


BUDGETS: dict[str, Budget] = {
    budget.name: budget
    for budget in (
        Budget("paper", Fraction(1), Fraction(1), RANGE_STEPS_FLOOR),
        Budget("medium", Fraction(1, 20), Fraction(1), RANGE_STEPS_FLOOR),
        Budget("short", Fraction(1, 100), Fraction(1), RANGE_STEPS_FLOOR),
        Budget("smoke", Fraction(1, 4000), Fraction(1, 50), 10),
    )
}
"""Every budget by name; design: `medium` 1/20 and `short` 1/100 of the generator and student steps."""


def budget_named(name: str) -> Budget:
    """Returns the budget of that name.

    Raises:
        UsageError: the name is not a budget.
    """
    if name not in BUDGETS:
        raise unknown_name("budget", name, BUDGETS)
    return BUDGETS[name]
