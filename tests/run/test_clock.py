"""The clock against times that are made up."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from dfqbench.run.worker.accounting import Clock, Timers


@dataclass
class Time:
    """A clock that is moved by hand; the device runs behind the host."""

    host: float = 0.0
    device: float = 0.0
    synchronisations: int = 0
    events: int = 0

    def synchronize(self) -> None:
        self.synchronisations += 1
        self.host = max(self.host, self.device)


@dataclass
class FakeEvent:
    time: Time
    at: float = field(default=0.0)

    def record(self) -> None:
        self.time.events += 1
        self.at = self.time.device

    def query(self) -> bool:
        return self.at <= self.time.host

    def elapsed_time(self, end_event: Any) -> float:
        return float(end_event.at - self.at) * 1000.0


def test_source_calls_are_charged_to_synthesis() -> None:
    time = Time()
    clock = Clock(Timers(now=lambda: time.host))
    with clock.phase("synthesis"):
        time.host += 5
    with clock.phase("quantization", source_name="synthesis"):
        time.host += 1
        for _ in range(3):
            with clock.source_call():
                time.host += 2
                with clock.source_call():
                    time.host += 1
        time.host += 10
    assert clock.seconds == pytest.approx({"synthesis": 5 + 9, "quantization": 11})


def test_account_read_in_a_pause_does_not_end_the_pause() -> None:
    time = Time()
    clock = Clock(Timers(now=lambda: time.host))
    with clock.phase("quantization", source_name="synthesis"):
        for _ in range(3):
            with clock.source_call():
                time.host += 2
            time.host += 1
            with clock.paused():
                clock.elapsed()
                time.host += 5
    assert clock.seconds == pytest.approx({"synthesis": 6, "quantization": 3})


def test_an_exception_still_charges_the_time() -> None:
    time = Time()
    clock = Clock(Timers(now=lambda: time.host))
    with pytest.raises(RuntimeError), clock.phase("quantization", source_name="synthesis"), clock.source_call():
        time.host += 4
        raise RuntimeError
    assert clock.seconds == pytest.approx({"synthesis": 4, "quantization": 0})


def test_a_device_phase_synchronises_once_and_splits_by_events() -> None:
    time = Time()
    clock = Clock(Timers(time.synchronize, lambda: FakeEvent(time), lambda: time.host))
    with clock.phase("quantization", source_name="synthesis"):
        for _ in range(100):
            with clock.source_call():
                time.host += 0.001  # the host only launches
                time.device += 0.3
            time.host += 0.001
            time.device += 0.1
    assert time.synchronisations == 1
    wall = time.host
    assert wall == pytest.approx(40, rel=1e-6)
    assert clock.seconds["synthesis"] == pytest.approx(0.75 * wall, rel=1e-3)
    assert sum(clock.seconds.values()) == pytest.approx(wall)


def test_events_of_one_phase_do_not_leak_into_the_next() -> None:
    time = Time()
    clock = Clock(Timers(time.synchronize, lambda: FakeEvent(time), lambda: time.host))
    for _ in range(2):
        with clock.phase("quantization", source_name="synthesis"), clock.source_call():
            time.device += 1
            time.host += 1
    with clock.phase("quantization", source_name="synthesis"):
        time.device += 2
        time.host += 2
    assert clock.seconds == pytest.approx({"synthesis": 2, "quantization": 2})
