"""The clock: where the seconds of an attempt go.

Synthesis is everything inside calls of the source, whoever asks for it. On CUDA, kernels run behind the host's back, so
that segments are marked with events; there is one synchronisation at the end of a phase, and an interleaved phase's
wall time is split in proportion to its event sums.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
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
        self._open: tuple[str, str | None] | None = None
        self._begin = 0.0

    @contextmanager
    def phase(self, name: str, inside: str | None = None) -> Iterator[None]:
        """Charges the time within to `name`, and that spent in :meth:`inside` to `inside`.

        Args:
            name: phase that pays for the time.
            inside: phase that pays for the marked segments, or None: `name` pays for these too.
        """
        self._open = (name, inside)
        self._start()
        try:
            yield
        finally:
            self.seconds = self.so_far()
            self._open = self._sums = self._mark = None

    def _start(self) -> None:
        self._begin = self._now()
        self._inside_seconds = 0.0
        if self._make_event is not None:
            self._sums = EventSums()
            self._mark = self._event()

    def so_far(self) -> dict[str, float]:
        """Seconds by phase until now, the open phase included; waits for the device."""
        found = dict(self.seconds)
        if self._open is None:
            return found
        name, inside = self._open
        self._cut("inside" if self._depth else "outside")
        if self._synchronize is not None:
            self._synchronize()
        wall = self._now() - self._begin
        share = self._inside_share(wall) if inside is not None else 0.0
        parts = (
            [(name, wall * (1.0 - share))] if inside is None else [(inside, wall * share), (name, wall * (1 - share))]
        )
        for phase, seconds in parts:
            found[phase] = found.get(phase, 0.0) + seconds
        return found

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time within is nobody's: it is part of no phase."""
        if self._open is None:
            yield
            return
        self._cut("inside" if self._depth else "outside")
        if self._synchronize is not None:
            self._synchronize()
        begin = self._now()
        try:
            yield
        finally:
            spent = self._now() - begin
            self._begin += spent
            if self._depth:
                self._inside_seconds -= spent
            if self._make_event is not None:
                self._mark = self._event()

    def go_on_from(self, seconds: Mapping[str, float]) -> None:
        """Sets the account to an earlier one; an open phase begins now, and what it took until now is nobody's."""
        self.seconds = dict(seconds)
        if self._open is not None:
            self._start()

    def _cut(self, side: str) -> None:
        """Ends the running segment of device time and begins the next."""
        if self._sums is not None and self._mark is not None:
            now = self._event()
            self._sums.add(side, self._mark, now)
            self._mark = now

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
        self._cut("outside")
        try:
            yield
        finally:
            self._depth -= 1
            self._inside_seconds += self._now() - begin
            self._cut("inside")

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
