from __future__ import annotations

import pytest

from dfqbench.api import budget_named
from dfqbench.synth import TrainingSchedule, is_large


def _schedule(budget: str, warmup: int = 4) -> TrainingSchedule:
    return TrainingSchedule(budget_named(budget), epochs=400, iterations=200, range_epochs=4, warmup_epochs=warmup)


def test_paper_budget_is_the_published_schedule() -> None:
    schedule = _schedule("paper", warmup=50)
    assert (schedule.range_steps, schedule.student_start, schedule.total) == (800, 10_000, 80_000)
    assert [schedule.step_of(epoch) for epoch in (0, 2, 4, 100, 300)] == [0, 400, 800, 20_000, 60_000]
    assert schedule.epoch_steps == 200


def test_rates_decay_where_the_epoch_begins() -> None:
    schedule = _schedule("paper")
    steps = (100, 200, 300)
    assert [schedule.decays(steps, s) for s in (0, 19_999, 20_000, 40_000, 79_999)] == [0, 0, 1, 2, 3]


@pytest.mark.parametrize("warmup", [0, 4, 50])
def test_short_budget_keeps_the_range_phase(warmup: int) -> None:
    schedule = _schedule("short", warmup)
    assert schedule.range_steps == 200
    assert schedule.student_start == (292 if warmup == 50 else 200)
    assert schedule.total == 200 + 792
    assert schedule.student_start < schedule.total
    assert schedule.decays((100, 200, 300), schedule.total - 1) == 3


def test_smoke_still_trains() -> None:
    schedule = TrainingSchedule(budget_named("smoke"), epochs=4, iterations=200, range_epochs=4, warmup_epochs=50)
    assert schedule.range_steps == 10
    assert schedule.total > schedule.student_start


def test_size_decides_the_recipe() -> None:
    assert not is_large((3, 32, 64))
    assert is_large((3, 65, 32))
