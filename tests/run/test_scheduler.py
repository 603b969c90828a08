from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from attempts import PLUGINS, data_of
from dfqbench.api import UsageError
from dfqbench.plugins import load_plugins
from dfqbench.run.execute.job import EvaluationTimeoutError, EvaluatorDiedError, OnProgress, Outcome
from dfqbench.run.plan.estimate import Estimate
from dfqbench.run.schedule.run import Options, run_plan
from dfqbench.run.schedule.run_environment import Rules
from dfqbench.run.schedule.scheduler import Summary
from dfqbench.run.store.environment import describe_environment
from dfqbench.run.store.status import RETRIES
from pretend import Evaluator, Executor, assert_parts_sum_to_wall_time, done, one_image_target, plan_of, schedule

ELSEWHERE = {"instructions": ["another vendor"]}


def executor_of(**result: Any) -> Executor:
    seconds = {"setup": 1.0, "synthesis": 2.0, "quantization": 3.0}
    executor = Executor(lambda *_: done(seconds=seconds, **result), slots=1)
    executor.in_process = True
    return executor


def run(folder: Path, executor: Executor, environment: dict[str, Any] | None = None, **rules: Any) -> Summary:
    description = describe_environment("cpu") | (environment or {})
    return schedule(folder, plan_of("noise"), executor, rules=Rules(**rules), description=description)


def test_readable_finished_cells_are_reused_in_their_environment_only(tmp_path: Path) -> None:
    executor = executor_of()
    run(tmp_path, executor)
    run(tmp_path, executor)
    assert len(executor.jobs) == 1
    reused = run(tmp_path, executor, ELSEWHERE, any_environment=True)
    assert (len(executor.jobs), reused.reused) == (1, 1)
    run(tmp_path, executor, ELSEWHERE)
    assert len(executor.jobs) == 2
    for file in tmp_path.glob("cells/*/attempt-*/record.json"):
        file.write_text("{")
    run(tmp_path, executor)
    assert len(executor.jobs) == 3


@pytest.mark.parametrize(
    ("environment", "rules", "jobs"), [({}, {}, 1), ({}, {"retry": RETRIES["failed"]}, 2), (ELSEWHERE, {}, 2)]
)
def test_invalid_cells_run_again_on_request_or_elsewhere(
    environment: dict[str, Any], rules: dict[str, Any], jobs: int, tmp_path: Path
) -> None:
    executor = executor_of()
    executor.asked = Evaluator(violations=["activation relu"], levels_ok=False)
    first = run(tmp_path, executor)
    assert [record.status for record in first.failed] == ["invalid"]
    assert "activation relu" in str(first.failed[0].error)
    executor.asked = Evaluator()
    again = run(tmp_path, executor, environment, **rules)
    assert (len(executor.jobs), len(again.failed)) == (jobs, 2 - jobs)


def test_oracle_is_a_column_of_its_own_and_is_not_timed(tmp_path: Path) -> None:
    executor = executor_of()
    executor.asked = Evaluator(curve=[{"step": 5, "top1": 95.0}, {"step": 9, "top1": 90.0}])
    plain = data_of(run(tmp_path, executor))[0]
    assert (plain["oracle"], plain["curve"], plain["oracle_asked"]) == (None, None, 0)
    # A cell that was finished without it, or with fewer points, runs again; one with as many does not.
    record = data_of(run(tmp_path, executor, oracle=2))[0]
    assert (record["top1"], record["oracle"]) == (90.0, {"top1": 95.0, "step": 5})
    assert [job.snapshots for job in executor.jobs] == [0, 2]
    for oracle, jobs in ((1, 2), (0, 2), (3, 3)):
        run(tmp_path, executor, oracle=oracle)
        assert len(executor.jobs) == jobs
    assert_parts_sum_to_wall_time(record["seconds"])


def test_record_has_stand_alone_cost_of_a_shared_source_and_opened_data(tmp_path: Path) -> None:
    reused = {"id": "abcd", "seconds": 100.0, "counts": {"images": 64}, "peak_mib": 5.0}
    executor = executor_of(counts={"images": 3}, reused=reused, real_data_opened=["/data/test.npz"])
    record = data_of(run(tmp_path, executor))[0]
    assert (record["seconds"]["synthesis"], record["seconds"]["paid_synthesis"]) == (102.0, 2.0)
    assert (record["reused_from"], record["counts"]["images"], record["peak_mib"]["synthesis"]) == ("abcd", 67, 5.0)
    assert record["status"] == "invalid"
    assert "opened real data: /data/test.npz" in record["error"]["message"]


@pytest.mark.parametrize(
    ("measured", "reused", "expected"),
    [
        ({"synthesis": 2.0, "quantization": 3.0}, None, (2.0, 3.0)),
        ({"quantization": 3.0}, {"seconds": 100.0, "cpu_seconds": 90.0}, (90.0, 3.0)),
        ({"synthesis": 0.1, "quantization": 3.0}, {"seconds": 100.0}, (None, 3.0)),
        (None, {"seconds": 100.0, "cpu_seconds": 90.0}, (None, None)),
    ],
)
def test_cpu_seconds_include_a_reused_source_or_are_not_stated(
    measured: Any, reused: Any, expected: tuple[float | None, ...], tmp_path: Path
) -> None:
    record = data_of(run(tmp_path, executor_of(cpu_seconds=measured, reused=reused)))[0]
    assert (record["cpu_seconds"]["synthesis"], record["cpu_seconds"]["quantization"]) == expected


def test_plugins_get_finished_records(tmp_path: Path) -> None:
    file = tmp_path / "observer.py"
    file.write_text((PLUGINS / "observer.py").read_text())
    schedule(tmp_path / "run", plan_of("noise"), executor_of(), plugins=load_plugins([file]))
    assert file.with_suffix(".seen").read_text() == "noise ok\n"


def test_too_many_failures_end_a_run(tmp_path: Path) -> None:
    failed = Outcome("failed", error={"type": "ValueError", "message": "x", "phase": None})
    executor = Executor(lambda *_: failed, slots=1)
    summary = schedule(tmp_path, plan_of("zeroq,noise,real"), executor, rules=Rules(max_failures=1))
    assert ([record.method for record in summary.records], summary.missing) == (["zeroq"], 2)


@pytest.mark.parametrize(
    ("error", "status"),
    [(EvaluatorDiedError("killed by SIGKILL"), "failed"), (EvaluationTimeoutError("7 s"), "timeout")],
)
def test_failing_evaluator_costs_one_cell(error: EvaluatorDiedError, status: str, tmp_path: Path) -> None:
    limits = []

    class Failing(Evaluator):
        def ask(
            self, request: Mapping[str, Any], limit: float = 0.0, on_progress: OnProgress | None = None
        ) -> dict[str, Any]:
            limits.append((request["op"], limit))
            if request["op"] == "evaluate":
                raise error
            return super().ask(request, limit, on_progress)

    executor = executor_of()
    executor.asked = Failing()
    summary = run(tmp_path, executor, evaluation_limit=7.0)
    assert {("baseline", 7.0), ("evaluate", 7.0)} <= set(limits)
    (record,) = data_of(summary)
    assert (record["status"], record["error"]["type"]) == (status, type(error).__name__)
    assert (record["error"]["message"], record["error"]["phase"]) == (str(error), "evaluation")
    assert summary.failed == summary.records
    written = json.loads(next(tmp_path.glob("cells/*/attempt-1/record.json")).read_text())
    assert written["error"] == record["error"]


def test_run_of_more_than_a_day_needs_yes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dfqbench.run.schedule.run.timed_estimate", lambda *_: Estimate(50 * 3600.0, 1, 0))
    with pytest.raises(UsageError, match=r"about 50.0 h; add --yes, or choose a smaller budget: --budget medium"):
        run_plan(plan_of("noise"), load_plugins(), Options(tmp_path, None, "cpu"), Console(quiet=True))
    assert not (tmp_path / "smoke" / "cells").exists()


def test_unavailable_cells_leave_one_record(tmp_path: Path) -> None:
    name = one_image_target(tmp_path / "data")
    plan = plan_of("noise", data=[tmp_path / "data"], on=name, models="torchvision:resnet18")
    for _ in range(2):
        summary, folder = run_plan(plan, load_plugins(), Options(tmp_path, None, "cpu"), Console(quiet=True))
        assert [record.status for record in summary.records] == ["unavailable"]
        assert summary.failed == []
    assert len(list(folder.path.glob("cells/*/attempt-*"))) == 1
