from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from dfqbench.run.worker.accounting import Accounting
from dfqbench.run.worker.clock import Clock, Timers
from dfqbench.run.worker.plugin_checks import DataGuard


@dataclass
class Time:
    """Seconds of host, its CPU and the device; the device runs behind the host."""

    host: float = 0.0
    cpu: float = 0.0
    device: float = 0.0
    synchronizations: int = 0

    def synchronize(self) -> None:
        self.synchronizations += 1
        self.host = max(self.host, self.device)

    def compute(self, seconds: float) -> None:
        """Compute for some CPU seconds, with as much waiting for a core."""
        self.cpu += seconds
        self.host += 2 * seconds

    def clock(self, *, on_device: bool = False) -> Clock:
        make_event = (lambda: FakeEvent(self)) if on_device else None
        return Clock(Timers(self.synchronize, make_event, now=lambda: self.host, cpu=lambda: self.cpu))

    def accounting(self) -> Accounting:
        made = Accounting(torch.device("cpu"), DataGuard([]), started=0.0, shared_flag="")
        made.clock = self.clock()
        return made


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


def test_cpu_seconds_are_charged_where_wall_seconds_are() -> None:
    time = Time()
    clock = time.clock()
    with clock.phase("quantization", source_name="synthesis"):
        for _ in range(3):
            with clock.source_call():
                time.compute(2)
                with clock.paused():
                    time.compute(100)
            time.compute(1)
        assert clock.cpu_elapsed() == pytest.approx({"synthesis": 6, "quantization": 3})
        time.host += 50
    assert clock.cpu_seconds == pytest.approx({"synthesis": 6, "quantization": 3})
    assert clock.seconds == pytest.approx({"synthesis": 12, "quantization": 6 + 50})


def test_cpu_seconds_are_not_measured_on_a_device() -> None:
    time = Time()
    clock = time.clock(on_device=True)
    with clock.phase("quantization", source_name="synthesis"), clock.source_call():
        time.compute(2)
    assert clock.cpu_seconds is None


def test_students_of_one_loop_share_common_cpu_seconds_by_their_own() -> None:
    time = Time()
    first, second = time.accounting(), time.accounting()
    for member in (first, second):
        member.share("abcd", [first, second])
    phase = first.clock.shared_phase("quantization", "synthesis", 2)
    with first.clock.part_of(phase, 0), second.clock.part_of(phase, 1):
        with phase.source_call():
            time.compute(10)
        time.compute(4)
        for number, seconds in enumerate((1, 3)):
            with phase.student(number):
                time.compute(seconds)
    assert first.clock.cpu_seconds == pytest.approx({"synthesis": 10, "quantization": 1 + 1})
    assert second.clock.cpu_seconds == pytest.approx({"synthesis": 0, "quantization": 3 + 3})
    # What the source would have cost the second alone.
    assert second.so_far()["reused"]["cpu_seconds"] == pytest.approx(10)
    assert second.so_far()["reused"]["seconds"] == pytest.approx(20)


def test_resumed_cpu_seconds_add_up() -> None:
    time = Time()
    first, second = time.accounting(), time.accounting()
    with first.clock.phase("quantization", source_name="synthesis"):
        time.compute(4)
        state = first.checkpoint("quantization")  # type: ignore[arg-type]
        time.compute(100)
    time.cpu = 0.5
    with second.clock.phase("quantization", source_name="synthesis"):
        time.compute(100)
        second.restore(state)
        time.compute(1)
        with second.clock.source_call():
            time.compute(2)
    assert second.so_far()["cpu_seconds"] == pytest.approx({"synthesis": 2, "quantization": 5})
    # Of an attempt that did not measure them, a part is not the whole.
    third = time.accounting()
    with third.clock.phase("quantization"):
        third.restore({key: value for key, value in state.items() if key != "cpu_seconds"})
        time.compute(1)
    assert third.so_far()["cpu_seconds"] is None
    third.share("abcd", [third, second])
    second.share("abcd", [third, second])
    assert second.so_far()["reused"]["cpu_seconds"] is None
