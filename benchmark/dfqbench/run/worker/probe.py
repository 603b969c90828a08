"""A probe: some steps of each phase are timed, and the rest is extrapolated."""

from __future__ import annotations

import time

from dfqbench.run.execute.events import EventSink, Phase, Probed

WARM_STEPS = 3
"""Steps that are not timed, and the fewest that are."""


class ProbeDone(BaseException):
    """End a probe from inside `progress`; no plugin's `except Exception` catches it."""


class Probe:
    """Time the steps of one phase.

    Args:
        phase: the phase.
        seconds: how long to time.
        events: receives the extrapolated time.
    """

    def __init__(self, phase: Phase, seconds: float, events: EventSink) -> None:
        self._phase = phase
        self._seconds = seconds
        self._events = events
        self._begin: tuple[float, int] | None = None

    def step(self, step: int, total: int) -> None:
        """Take a step into account.

        Raises:
            ProbeDone: enough was timed.
        """
        now = time.monotonic()
        if step <= WARM_STEPS or self._begin is None:
            # The first steps include warm-up; they are left out.
            self._begin = now, step
            return
        begin, first_step = self._begin
        seconds, steps = now - begin, step - first_step
        if step < total and steps >= WARM_STEPS and seconds >= self._seconds:
            self._events.send(Probed(self._phase, seconds / steps * total))
            raise ProbeDone
