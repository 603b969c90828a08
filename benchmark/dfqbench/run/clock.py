"""The clock: where the seconds of an attempt go.

Synthesis is everything inside calls of the source, whoever asks for it. On CUDA, kernels run behind the host's back, so
that segments are marked with events; there is one synchronisation at the end of a phase, and an interleaved phase's
wall time is split in proportion to its event sums.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol


class Event(Protocol):
    """What the clock needs of a CUDA event."""

    def record(self) -> None:
        """Marks the present point of the device's stream."""
        ...

    def query(self) -> bool:
        """Whether the device has passed the point."""
        ...

    def elapsed_time(self, end_event: Event) -> float:
        """Milliseconds to another passed event."""
        ...


class EventSums:
    """Sums of device time between events, folded up as they complete so that long phases hold few events."""

    def __init__(self) -> None:
        self.seconds = {"inside": 0.0, "outside": 0.0}
        self._open: deque[tuple[str, Event, Event]] = deque()

    def add(self, side: str, begin: Event, end: Event) -> None:
        """Notes a segment; sums those that the device has finished."""
        self._open.append((side, begin, end))
        while self._open and self._open[0][2].query():
            self._fold()

    def finish(self) -> None:
        """Sums the rest; the device must have been synchronised."""
        while self._open:
            self._fold()

    def _fold(self) -> None:
        side, begin, end = self._open.popleft()
        self.seconds[side] += begin.elapsed_time(end) / 1000.0


class Clock:
    """Seconds by phase.

    Args:
        synchronize: waits for the device; None on the CPU.
        make_event: makes a device event; None on the CPU.
        now: monotonic seconds.
    """

    def __init__(
        self,
        synchronize: Callable[[], None] | None = None,
        make_event: Callable[[], Event] | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.seconds: dict[str, float] = {}
        self._synchronize = synchronize
        self._make_event = make_event
        self._now = now
        self._inside_seconds = 0.0
        self._depth = 0
        self._sums: EventSums | None = None
        self._mark: Event | None = None

    @contextmanager
    def phase(self, name: str, inside: str | None = None) -> Iterator[None]:
        """Charges the time within to `name`, and that spent in :meth:`inside` to `inside`.

        Args:
            name: phase that pays for the time.
            inside: phase that pays for the marked segments, or None: `name` pays for these too.
        """
        begin = self._now()
        self._inside_seconds = 0.0
        if self._make_event is not None:
            self._sums = EventSums()
            self._mark = self._event()
        try:
            yield
        finally:
            if self._sums is not None and self._mark is not None:
                self._sums.add("outside", self._mark, self._event())
            if self._synchronize is not None:
                self._synchronize()
            wall = self._now() - begin
            share = self._inside_share(wall)
            if inside is not None:
                self.add(inside, wall * share)
                self.add(name, wall * (1.0 - share))
            else:
                self.add(name, wall)
            self._sums = self._mark = None

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Marks a segment that belongs to the source; nested marks count once."""
        self._depth += 1
        if self._depth > 1:
            try:
                yield
            finally:
                self._depth -= 1
            return
        begin = self._now()
        if self._sums is not None and self._mark is not None:
            start = self._event()
            self._sums.add("outside", self._mark, start)
            self._mark = start
        try:
            yield
        finally:
            self._depth -= 1
            self._inside_seconds += self._now() - begin
            if self._sums is not None and self._mark is not None:
                end = self._event()
                self._sums.add("inside", self._mark, end)
                self._mark = end

    def add(self, name: str, seconds: float) -> None:
        """Charges seconds to a phase."""
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    def _inside_share(self, wall: float) -> float:
        if wall <= 0.0:
            return 0.0
        if self._sums is None:
            return min(1.0, self._inside_seconds / wall)
        self._sums.finish()
        inside, outside = self._sums.seconds["inside"], self._sums.seconds["outside"]
        return inside / (inside + outside) if inside + outside > 0.0 else 0.0

    def _event(self) -> Event:
        if self._make_event is None:  # pragma: no cover - guarded by the callers
            raise RuntimeError("the clock has no device events")
        event = self._make_event()
        event.record()
        return event
