from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from dfqbench.run.worker.accounting import Clock, Timers


@dataclass
class Time:
    """Seconds of host and device; the device runs behind the host."""

    host: float = 0.0
    device: float = 0.0
    synchronizations: int = 0

    def synchronize(self) -> None:
        self.synchronizations += 1
        self.host = max(self.host, self.device)

    def clock(self, *, on_device: bool = False) -> Clock:
        now = lambda: self.host  # noqa: E731
        return Clock(Timers(self.synchronize, lambda: FakeEvent(self), now) if on_device else Timers(now=now))


@dataclass
class FakeEvent:
    time: Time
    at: float = 0.0

    def record(self) -> None:
        self.at = self.time.device

    def query(self) -> bool:
        return self.at <= self.time.host

    def elapsed_time(self, end_event: Any) -> float:
        return float(end_event.at - self.at) * 1000.0


def test_source_calls_are_charged_to_synthesis() -> None:
    time = Time()
    clock = time.clock()
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


def test_pauses_are_left_out_also_around_source_calls_and_readings() -> None:
    time = Time()
    clock = time.clock()
    with clock.phase("quantization", source_name="synthesis"):
        for number in range(3):
            with clock.source_call():
                time.host += 2
            time.host += 1
            with clock.paused():
                assert sum(clock.elapsed().values()) == pytest.approx(time.host - 5 * number)
                with clock.source_call(), clock.paused():
                    time.host += 5
    assert clock.seconds == pytest.approx({"synthesis": 6, "quantization": 3})


def test_exception_still_charges_the_time() -> None:
    time = Time()
    clock = time.clock()
    with pytest.raises(RuntimeError), clock.phase("quantization", source_name="synthesis"), clock.source_call():
        time.host += 4
        raise RuntimeError
    assert clock.seconds == pytest.approx({"synthesis": 4, "quantization": 0})


def test_device_phase_synchronizes_once_and_splits_by_events() -> None:
    time = Time()
    clock = time.clock(on_device=True)
    with clock.phase("quantization", source_name="synthesis"):
        for _ in range(100):
            with clock.source_call():
                time.host += 0.001  # the host only launches
                time.device += 0.3
            time.host += 0.001
            time.device += 0.1
    assert time.synchronizations == 1
    assert time.host == pytest.approx(40, rel=1e-6)
    assert clock.seconds["synthesis"] == pytest.approx(0.75 * time.host, rel=1e-3)
    assert sum(clock.seconds.values()) == pytest.approx(time.host)


def test_events_of_one_phase_do_not_count_in_the_next() -> None:
    time = Time()
    clock = time.clock(on_device=True)
    for _ in range(2):
        with clock.phase("quantization", source_name="synthesis"), clock.source_call():
            time.device += 1
            time.host += 1
    with clock.phase("quantization", source_name="synthesis"):
        time.device += 2
        time.host += 2
    assert clock.seconds == pytest.approx({"synthesis": 2, "quantization": 2})
