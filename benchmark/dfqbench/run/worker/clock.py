"""The clock: where the seconds of an attempt go.

Synthesis is everything inside calls of the source, regardless of the caller. A loop in which source and students take
turns is split by who was at work: by the host's time on the CPU, and on CUDA, where kernels run asynchronously, in
proportion to the sums of device time between events, with one synchronisation at the end.
"""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
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


class Timers:
    """Where the time comes from.

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
        self.make_event = make_event
        self.now = now
        self._synchronize = synchronize

    def synchronize(self) -> None:
        """Waits for the device, if there is one."""
        if self._synchronize is not None:
            self._synchronize()


class Segments:
    """Sums of time by label; events are summed as they complete, so that long phases hold few."""

    def __init__(self, timers: Timers) -> None:
        self._timers = timers
        self._sums: defaultdict[Hashable, float] = defaultdict(float)
        self._open: deque[tuple[Hashable, Event, Event]] = deque()
        self._label: Hashable = None
        self._event: Event | None = None
        self._moment = 0.0

    def switch(self, label: Hashable) -> None:
        """Ends the running segment and begins one of another label; time labelled None is not counted."""
        ended, event, moment = self._label, self._event, self._moment
        self._label, self._moment = label, self._timers.now()
        if self._timers.make_event is None:
            self._sums[ended] += self._moment - moment
            return
        self._event = self._timers.make_event()
        self._event.record()
        if event is not None:
            self._open.append((ended, event, self._event))
        while self._open and self._open[0][2].query():
            self._fold()

    def sums(self) -> Mapping[Hashable, float]:
        """Seconds by label until the last switch; the device must have been synchronised."""
        while self._open:
            self._fold()
        return {label: seconds for label, seconds in self._sums.items() if label is not None}

    def _fold(self) -> None:
        label, begin, end = self._open.popleft()
        self._sums[label] += begin.elapsed_time(end) / 1000.0


class PhaseTimer:
    """A phase that one student has to itself, or several share in one loop.

    Attributes:
        payer: number of the student that the source's time is charged to.

    Args:
        name: what the students' time is charged to.
        inside: what the source's time is charged to, or None: also `name`.
        timers: where the time comes from.
        students: how many share the phase.
    """

    def __init__(self, name: str, inside: str | None, timers: Timers, students: int = 1) -> None:
        self.payer = 0
        self._name = name
        self._inside = inside
        self._timers = timers
        self._students = students
        self._depth = 0
        self._paused = False
        # The student at work; None: what they have in common.
        self._current: int | None = 0 if students == 1 else None
        self.restart()

    def restart(self) -> None:
        """Forgets the time until now."""
        self._begin = self._timers.now()
        self._segments = Segments(self._timers)
        self._switch()

    def _switch(self) -> None:
        label = ("source", self.payer) if self._depth else ("student", self._current)
        self._segments.switch(None if self._paused else label)

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Marks the source's work; nested marks count once."""
        self._depth += 1
        self._switch()
        try:
            yield
        finally:
            self._depth -= 1
            self._switch()

    @contextmanager
    def student(self, number: int) -> Iterator[None]:
        """Marks the work of one of several students."""
        before, self._current = self._current, number
        self._switch()
        try:
            yield
        finally:
            self._current = before
            self._switch()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves out the time of a block."""
        if self._paused:
            yield
            return
        self._paused = True
        self._switch()
        self._timers.synchronize()
        begin = self._timers.now()
        try:
            yield
        finally:
            self._paused = False
            self._begin += self._timers.now() - begin
            self._switch()

    def split(self, number: int) -> dict[str, float]:
        """Seconds until now of one student, by phase; the device is synchronised.

        The wall time is split by the sums of each student's and the source's segments; what the students have in common
        is split as their own segments are.
        """
        self._switch()
        self._timers.synchronize()
        wall, sums = self._timers.now() - self._begin, self._segments.sums()
        total = sum(sums.values())
        own = sums.get(("student", number), 0.0)
        every = sum(sums.get(("student", other), 0.0) for other in range(self._students))
        common = sums.get(("student", None), 0.0)
        own += common * (own / every if every > 0.0 else 1.0 / self._students)
        source = sums.get(("source", number), 0.0)
        if total <= 0.0:
            own, source, total = 1.0, 0.0, float(self._students)
        if self._inside is None:
            return {self._name: wall * (own + source) / total}
        return {self._inside: wall * source / total, self._name: wall * own / total}


class Clock:
    """Seconds of one attempt by phase.

    Args:
        timers: where the time comes from; None: the host's monotonic clock.
    """

    def __init__(self, timers: Timers | None = None) -> None:
        self.seconds: dict[str, float] = {}
        self._timers = timers or Timers()
        self._phase: PhaseTimer | None = None
        self._number = 0

    def shared_phase(self, name: str, inside: str | None, students: int) -> PhaseTimer:
        """Makes a phase for several students, each of whose clocks enters it with `part_of`."""
        return PhaseTimer(name, inside, self._timers, students)

    @contextmanager
    def phase(self, name: str, inside: str | None = None) -> Iterator[None]:
        """Charges the time of a block to `name`, and that spent in :meth:`inside` to `inside`, if it is given."""
        with self.part_of(self.shared_phase(name, inside, 1), 0):
            yield

    @contextmanager
    def part_of(self, phase: PhaseTimer, number: int) -> Iterator[None]:
        """Charges the part of one student of a phase; it ends with the block."""
        self._phase, self._number = phase, number
        try:
            yield
        finally:
            self.seconds = self.so_far()
            self._phase = None

    def so_far(self) -> dict[str, float]:
        """Seconds by phase until now, the open phase included; the device is then synchronised."""
        seconds = dict(self.seconds)
        if self._phase is not None:
            for name, more in self._phase.split(self._number).items():
                seconds[name] = seconds.get(name, 0.0) + more
        return seconds

    def paused(self) -> AbstractContextManager[None]:
        """Leaves out the time of a block: it is part of no phase."""
        return nullcontext() if self._phase is None else self._phase.paused()

    def go_on_from(self, seconds: Mapping[str, float]) -> None:
        """Sets the account to an earlier one; an open phase begins now."""
        self.seconds = dict(seconds)
        if self._phase is not None:
            self._phase.restart()

    def inside(self) -> AbstractContextManager[None]:
        """Marks a block that belongs to the source; nested marks count once."""
        return nullcontext() if self._phase is None else self._phase.inside()

    def add(self, name: str, seconds: float) -> None:
        """Charges seconds to a phase."""
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds
