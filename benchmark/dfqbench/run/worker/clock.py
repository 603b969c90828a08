"""The clock of an attempt: seconds by phase.

Synthesis is everything inside calls of the source, regardless of the caller. A loop in which source and students
alternate is split by the time of each: by the host's time on the CPU, and on CUDA, where kernels run asynchronously, in
proportion to the sums of device time between events, with one synchronization at the end.

CPU seconds are those of the worker's process, all threads, and are charged at the same points. On CUDA they are not
measured: the host launches kernels and waits.
"""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

_Label: TypeAlias = tuple[str, int | None] | None
"""("source", payer), ("student", number), or ("student", None): for all students; time labelled None is not counted."""


class _DeviceEvent(Protocol):
    """The part of `torch.cuda.Event` that the clock uses."""

    def record(self) -> None: ...
    def query(self) -> bool: ...
    def elapsed_time(self, end_event: Any) -> float: ...


@dataclass(frozen=True, slots=True)
class Timers:
    """Sources of time.

    Attributes:
        synchronize: wait for the device; nothing on the CPU.
        make_event: make a device event; None on the CPU.
        now: monotonic seconds.
        cpu: CPU seconds of this process, read where there are no device events.
    """

    synchronize: Callable[[], None] = lambda: None
    make_event: Callable[[], _DeviceEvent] | None = None
    now: Callable[[], float] = time.monotonic
    cpu: Callable[[], float] = time.process_time


class _Segments:
    """Sums of time by label; events are summed as they complete, so that long phases hold few."""

    def __init__(self, timers: Timers) -> None:
        self._timers = timers
        self._sums: defaultdict[_Label, float] = defaultdict(float)
        self._open: deque[tuple[_Label, _DeviceEvent, _DeviceEvent]] = deque()
        self._label: _Label = None
        self._event: _DeviceEvent | None = None
        self._begin = 0.0

    def switch(self, label: _Label) -> None:
        """End the current segment and begin one of another label."""
        label, self._label = self._label, label
        begin, self._begin = self._begin, self._timers.now()
        if self._timers.make_event is None:
            self._sums[label] += self._begin - begin
            return
        event, self._event = self._event, self._timers.make_event()
        self._event.record()
        if event is not None:
            self._open.append((label, event, self._event))
        while self._open and self._open[0][2].query():
            self._sum_oldest()

    def sums(self) -> dict[_Label, float]:
        """Return seconds by label until the last switch; the device must have been synchronized."""
        while self._open:
            self._sum_oldest()
        return {label: seconds for label, seconds in self._sums.items() if label is not None}

    def _sum_oldest(self) -> None:
        label, begin, end = self._open.popleft()
        self._sums[label] += begin.elapsed_time(end) / 1000.0


class PhaseTimer:
    """Time of a phase of one student, or of several that share a loop.

    Attributes:
        payer: number of the student that the source's time is charged to.

    Args:
        name: phase that the students' time is charged to.
        source_name: phase that the source's time is charged to, or None: also `name`.
        timers: sources of time.
        students: how many share the phase.
    """

    def __init__(self, name: str, source_name: str | None, timers: Timers, students: int = 1) -> None:
        self.payer = 0
        self._name = name
        self._source_name = source_name
        self._timers = timers
        self._students = students
        self._label: _Label = ("student", 0 if students == 1 else None)
        self.restart()

    def restart(self) -> None:
        """Drop the time until now."""
        self._begin = self._timers.now()
        self._segments = _Segments(self._timers)
        self._cpu_segments = _Segments(Timers(now=self._timers.cpu)) if self._timers.make_event is None else None
        self._switch()

    def _switch(self) -> None:
        self._segments.switch(self._label)
        if self._cpu_segments is not None:
            self._cpu_segments.switch(self._label)

    @contextmanager
    def _charged_to(self, label: _Label) -> Iterator[None]:
        before = self._label
        # Inside a pause nothing is charged.
        self._label = None if before is None else label
        self._switch()
        try:
            yield
        finally:
            self._label = before
            self._switch()

    def source_call(self) -> AbstractContextManager[None]:
        """Charge a block to the source."""
        return self._charged_to(("source", self.payer))

    def student(self, number: int) -> AbstractContextManager[None]:
        """Charge a block to one of several students."""
        return self._charged_to(("student", number))

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out the time of a block."""
        if self._label is None:
            yield
            return
        with self._charged_to(None):
            self._timers.synchronize()
            begin = self._timers.now()
            try:
                yield
            finally:
                self._begin += self._timers.now() - begin

    def split(self, number: int) -> dict[str, float]:
        """Return one student's seconds until now by phase; the device is synchronized.

        The wall time is split as the segments of students and source are; work for all students as their own segments.
        """
        self._switch()
        self._timers.synchronize()
        return self._divided(self._timers.now() - self._begin, self._segments.sums(), number)

    def split_cpu(self, number: int) -> dict[str, float]:
        """Return one student's CPU seconds until now by phase, divided as the wall time; empty on a device."""
        if self._cpu_segments is None:
            return {}
        self._switch()
        sums = self._cpu_segments.sums()
        return self._divided(sum(sums.values()), sums, number)

    def _divided(self, whole: float, sums: Mapping[_Label, float], number: int) -> dict[str, float]:
        total = sum(sums.values())
        own = sums.get(("student", number), 0.0)
        all_students = sum(sums.get(("student", student), 0.0) for student in range(self._students))
        common = sums.get(("student", None), 0.0)
        own += common * (own / all_students if all_students > 0.0 else 1.0 / self._students)
        source = sums.get(("source", number), 0.0)
        if total <= 0.0:
            own, source, total = 1.0, 0.0, float(self._students)
        if self._source_name is None:
            return {self._name: whole * (own + source) / total}
        return {self._source_name: whole * source / total, self._name: whole * own / total}


class Clock:
    """Seconds of one attempt by phase.

    Attributes:
        seconds: of phases that have ended.
        cpu_seconds: the same of the process; None: they are not, or not all, measured.
    """

    def __init__(self, timers: Timers | None = None) -> None:
        self._timers = timers or Timers()
        self.seconds: dict[str, float] = {}
        self.cpu_seconds: dict[str, float] | None = {} if self._timers.make_event is None else None
        self._phase: PhaseTimer | None = None
        self._number = 0

    def shared_phase(self, name: str, source_name: str | None, students: int) -> PhaseTimer:
        """Make a phase for several students, each of whose clocks enters it with `part_of`."""
        return PhaseTimer(name, source_name, self._timers, students)

    def phase(self, name: str, source_name: str | None = None) -> AbstractContextManager[None]:
        """Charge the time of a block to `name`, and that of `source_call` to `source_name`, if given."""
        return self.part_of(self.shared_phase(name, source_name, 1), 0)

    @contextmanager
    def part_of(self, phase: PhaseTimer, number: int) -> Iterator[None]:
        """Charge one student's part of a phase; it ends with the block."""
        self._phase, self._number = phase, number
        try:
            yield
        finally:
            self.seconds, self.cpu_seconds = self.elapsed(), self.cpu_elapsed()
            self._phase = None

    def elapsed(self) -> dict[str, float]:
        """Return seconds by phase until now, the current phase included; the device is then synchronized."""
        return _added(self.seconds, {} if self._phase is None else self._phase.split(self._number))

    def cpu_elapsed(self) -> dict[str, float] | None:
        """Return CPU seconds by phase until now, the current phase included; None: not measured."""
        if self.cpu_seconds is None or self._phase is None:
            return self.cpu_seconds
        return _added(self.cpu_seconds, self._phase.split_cpu(self._number))

    def paused(self) -> AbstractContextManager[None]:
        """Leave out the time of a block: it belongs to no phase."""
        return nullcontext() if self._phase is None else self._phase.paused()

    def source_call(self) -> AbstractContextManager[None]:
        """Charge a block to the source; nested blocks count once."""
        return nullcontext() if self._phase is None else self._phase.source_call()

    def restore(self, seconds: Mapping[str, float], cpu_seconds: Mapping[str, float] | None) -> None:
        """Continue from the seconds of a checkpoint; the current phase begins now."""
        self.seconds = dict(seconds)
        self.cpu_seconds = None if cpu_seconds is None else dict(cpu_seconds)
        if self._phase is not None:
            self._phase.restart()


def _added(seconds: Mapping[str, float], more: Mapping[str, float]) -> dict[str, float]:
    return {**seconds} | {name: seconds.get(name, 0.0) + added for name, added in more.items()}
