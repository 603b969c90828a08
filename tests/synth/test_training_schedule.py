from __future__ import annotations

import pytest

from dfqbench.api import budget_named
from dfqbench.synth import TrainingSchedule, is_large


def _plan(budget: str, warmup: int = 4) -> TrainingSchedule:
    return TrainingSchedule(budget_named(budget), epochs=400, iterations=200, range_epochs=4, warmup_epochs=warmup)


def test_paper_budget_is_the_published_schedule() -> None:
    plan = _plan("paper", warmup=50)
    assert (plan.range_steps, plan.warmup_steps, plan.student_start, plan.total) == (800, 9200, 10_000, 80_000)
    assert [plan.step_of(epoch) for epoch in (0, 2, 4, 100, 300)] == [0, 400, 800, 20_000, 60_000]
    assert plan.epoch_steps == 200


def test_rates_decay_where_the_epoch_begins() -> None:
    plan = _plan("paper")
    steps = (100, 200, 300)
    assert [plan.decays(steps, s) for s in (0, 19_999, 20_000, 40_000, 79_999)] == [0, 0, 1, 2, 3]


@pytest.mark.parametrize("warmup", [0, 4, 50])
def test_short_budget_keeps_the_range_phase(warmup: int) -> None:
    plan = _plan("short", warmup)
    assert plan.range_steps == 200
    assert plan.warmup_steps == (92 if warmup == 50 else 0)
    assert plan.total == 200 + 792
    assert plan.student_start < plan.total
    assert plan.decays((100, 200, 300), plan.total - 1) == 3


def test_smoke_still_trains() -> None:
    plan = TrainingSchedule(budget_named("smoke"), epochs=4, iterations=200, range_epochs=4, warmup_epochs=50)
    assert plan.range_steps == 10
    assert plan.total > plan.student_start


def test_size_decides_the_recipe() -> None:
    assert not is_large((3, 32, 64))
    assert is_large((3, 65, 32))
