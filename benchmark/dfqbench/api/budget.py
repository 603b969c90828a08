"""Budgets: named lengths of training schedules."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from dfqbench.api.errors import unknown_name

STEPS, UPDATES, RECONSTRUCTION = 80_000, 500, 20_000
"""Published generator steps (GDFQ), updates of images (ZeroQ) and steps of block reconstruction on a unit (Genie), the
examples of `Budget.shortened`."""


@dataclass(frozen=True, slots=True)
class Budget:
    """A named length of training schedules.

    Attributes:
        name: `paper`, `medium`, `short`, `tiny` or `smoke`.
        training: factor on generator and student steps.
        images: factor on the iterations of methods that optimize images directly.
        range_floor: minimum number of steps of an activation-range phase.
        reconstruction: factor on the steps of block reconstruction, which are spent on each unit of the network.
    """

    name: str
    training: Fraction
    images: Fraction = Fraction(1)
    range_floor: int = 200  # methods.md 0.1: the official moving average settles in so many steps
    reconstruction: Fraction = Fraction(1)

    def training_steps(self, steps: int) -> int:
        """Scale a number of generator or student steps; at least 1 if `steps` is positive."""
        return _scaled(steps, self.training)

    def image_steps(self, steps: int) -> int:
        """Scale a number of iterations that optimize images directly; at least 1 if `steps` is positive."""
        return _scaled(steps, self.images)

    def range_steps(self, steps: int) -> int:
        """Scale the steps of an activation-range phase: at least `range_floor`, at most the published number."""
        return min(steps, max(self.range_floor, _scaled(steps, self.training)))

    def reconstruction_steps(self, steps: int) -> int:
        """Scale the steps of block reconstruction on a unit; at least 1 if `steps` is positive."""
        return _scaled(steps, self.reconstruction)

    @property
    def shortened(self) -> str:
        """What is shorter than published, in one line; empty for the published schedules."""
        if self.training == self.images == self.reconstruction == 1:
            return ""
        return (
            f"budget {self.name} is short: {self.training_steps(STEPS):,} generator and student steps for "
            f"{STEPS:,} published ones, at least {self.range_floor} steps for activation ranges, "
            f"{self.image_steps(UPDATES)} of {UPDATES} updates of images, "
            f"{self.reconstruction_steps(RECONSTRUCTION):,} of {RECONSTRUCTION:,} reconstruction steps"
        )


def _scaled(steps: int, factor: Fraction) -> int:
    return max(1, round(steps * factor)) if steps > 0 else 0


BUDGETS: dict[str, Budget] = {
    budget.name: budget
    for budget in (
        Budget("paper", training=Fraction(1)),
        Budget("medium", training=Fraction(1, 20), reconstruction=Fraction(1, 10)),
        Budget("short", training=Fraction(1, 100), reconstruction=Fraction(1, 40)),
        # Of the embedded target, whose whole tables are there in minutes. The moving averages of ranges settle in 40
        # steps (decay 0.9) unless the rule is the released one.
        Budget("tiny", training=Fraction(1, 2000), range_floor=40, reconstruction=Fraction(1, 200)),
        Budget(
            "smoke",
            training=Fraction(1, 4000),
            images=Fraction(1, 50),
            range_floor=10,
            reconstruction=Fraction(1, 1000),
        ),
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
