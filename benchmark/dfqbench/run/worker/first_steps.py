"""Timing of a phase's first steps, for an estimate of the whole."""

from __future__ import annotations

import time
from collections.abc import Callable

WARM_STEPS = 3
"""Steps that are not timed, and the fewest that are."""


class ProbeDone(BaseException):
    """Ends a probe from within `progress`; no plugin's `except Exception` can hold it."""


class FirstSteps:
    """Extrapolates the time of each phase from some steps, and ends it.

    Args:
        seconds: how long steps are timed; 0: never, nothing is ended.
        tell: takes the seconds that the phase would need.
    """

    def __init__(self, seconds: float, tell: Callable[[float], None]) -> None:
        self._seconds = seconds
        self._tell = tell
        self._since, self._first = 0.0, 0

    def begin(self) -> None:
        """Begins a phase."""
        self._since, self._first = 0.0, 0

    def step(self, step: int, total: int) -> None:
        """Hears of a step.

        Raises:
            ProbeDone: enough steps were timed.
        """
        if not self._seconds:
            return
        now = time.monotonic()
        if step <= WARM_STEPS or not self._since:
            # The first steps pay for warm-up; they are left out.
            self._since, self._first = now, step
            return
        spent, steps = now - self._since, step - self._first
        if step < total and steps >= WARM_STEPS and spent >= self._seconds:
            self._tell(spent / steps * total)
            raise ProbeDone
