"""A run's frame: long runs, other environments, unavailable cells, and a worker that is replaced by a fake."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from attempts import data_of
from dfqbench.api import UsageError
from dfqbench.grid import apply, load_grid, parse_selection
from dfqbench.plugins import Plugins, load_plugins
from dfqbench.run.execute.cancellation import Cancellation
from dfqbench.run.execute.events import Phase, Progress
from dfqbench.run.execute.job import EvaluationTimeoutError, EvaluatorDiedError, Job, OnEvent, Outcome, Slot
from dfqbench.run.plan.estimate import Estimate, History
from dfqbench.run.plan.plan import Plan, build_plan
from dfqbench.run.schedule import run as session
from dfqbench.run.schedule.progress import Display
from dfqbench.run.schedule.run import Options, run_plan
from dfqbench.run.schedule.run_environment import Rules, RunEnvironment
from dfqbench.run.schedule.scheduler import Scheduler, Summary
from dfqbench.run.store.environment import describe_environment
from dfqbench.run.store.run_folder import RunFolder
from dfqbench.run.store.status import RETRIES
from dfqbench.targets.catalogue import Catalogue

OBSERVER = Path(__file__).parent.parent / "plugins" / "observer.py"


class FakeExecutor:
    """Answers at once with what a worker would send."""

    in_process = True

    def __init__(self, **result: Any) -> None:
        self.slots = [Slot(0)]
        self.jobs: list[Job] = []
        self.asked: FakeEvaluator | None = None
        self.result = {
            "seconds": {"setup": 1.0, "synthesis": 2.0, "quantization": 3.0},
            "real_data_opened": [],
        } | result

    def evaluator(self, slot: Slot) -> FakeEvaluator:
        assert self.asked is not None
        return self.asked

    def close(self) -> None:
        pass

    def run(self, job: Job, slot: Slot, on_event: OnEvent, stop: Cancellation) -> Outcome:
        on_event(Progress(Phase.SYNTHESIS, 1, 2, {}))
        self.jobs.append(job)
        return Outcome("ok", result=self.result)


class FakeEvaluator:
    """Says that everything is on its grid."""

    def __init__(self, **changes: Any) -> None:
        self.changes = changes

    def kill(self) -> None:
        pass

    def close(self) -> None:
        pass

    def ask(self, request: Mapping[str, Any], limit: float = 0.0) -> dict[str, Any]:
        if request["op"] == "environment":
            return {"torch": {"collect_env": "as told"}}
        if request["op"] == "baseline":
            return {"fp_top1": 99.0, "n": 540, "subset": None, "parameters": 7}
        coverage = {"macs_quantized": 9, "macs_total": 10, "float_layers": ["conv1: input"]}
        return {
            "fp_top1": 99.0,
            "top1": 90.0,
            "top5": 99.0,
            "drop": 9.0,
            "top1_se": 1.0,
            "agreement": 91.0,
            "correct": "",
            "coverage": coverage,
            "levels_ok": True,
            "violations": [],
            "peak_mib": 1.0,
            "seconds": 4.0,
        } | self.changes


def small_plan(plugins: Plugins, methods: str = "noise") -> Plan:
    grid = apply(load_grid("smoke", plugins), parse_selection(methods=methods))
    return build_plan(grid, Catalogue.discover([]), plugins)


def sweep(folder: Path, executor: FakeExecutor, evaluator: FakeEvaluator, **options: Any) -> Summary:
    plugins = options.pop("plugins", None) or load_plugins()
    environment = describe_environment("cpu") | options.pop("environment", {})
    executor.asked = evaluator
    env = RunEnvironment(RunFolder(folder), plugins, "cpu", Rules(**options), description=environment)
    display = Display(Console(quiet=True), 1)
    return Scheduler(env, executor, display, History([])).run(small_plan(plugins).cells)


def test_a_finished_cell_is_reused_only_in_its_environment(tmp_path: Path) -> None:
    executor = FakeExecutor()
    sweep(tmp_path / "smoke", executor, FakeEvaluator())
    sweep(tmp_path / "smoke", executor, FakeEvaluator())
    assert len(executor.jobs) == 1
    other = {"device_name": "another processor"}
    reused = sweep(tmp_path / "smoke", executor, FakeEvaluator(), environment=other, any_environment=True)
    assert (len(executor.jobs), reused.reused) == (1, 1)
    sweep(tmp_path / "smoke", executor, FakeEvaluator(), environment=other)
    assert len(executor.jobs) == 2


def test_a_failure_elsewhere_is_tried_again_here(tmp_path: Path) -> None:
    executor = FakeExecutor()
    bad = FakeEvaluator(violations=["activation relu"], levels_ok=False)
    sweep(tmp_path / "smoke", executor, bad, environment={"device_name": "another processor"})
    assert sweep(tmp_path / "smoke", executor, FakeEvaluator()).failed == []


def test_failed_and_invalid_cells_run_again_on_request_only(tmp_path: Path) -> None:
    executor = FakeExecutor()
    bad = FakeEvaluator(violations=["activation relu"], levels_ok=False)
    first = sweep(tmp_path / "smoke", executor, bad)
    assert [record.status for record in first.failed] == ["invalid"]
    assert "activation relu" in str(first.failed[0].error)
    again = sweep(tmp_path / "smoke", executor, FakeEvaluator())
    assert (len(executor.jobs), len(again.failed)) == (1, 1)
    retried = sweep(tmp_path / "smoke", executor, FakeEvaluator(), retry=RETRIES["failed"])
    assert (len(executor.jobs), retried.failed) == (2, [])


class WithCurve(FakeEvaluator):
    """Answers for snapshots too."""

    def ask(self, request: Mapping[str, Any], limit: float = 0.0) -> dict[str, Any]:
        if request["op"] == "snapshots":
            return {"curve": [{"step": 5, "top1": 95.0}, {"step": 9, "top1": 90.0}]}
        return super().ask(request, limit)


def test_the_oracle_is_a_column_of_its_own_and_is_not_timed(tmp_path: Path) -> None:
    executor = FakeExecutor()
    plain = data_of(sweep(tmp_path / "smoke", executor, FakeEvaluator()))[0]
    assert (plain["oracle"], plain["curve"], plain["oracle_asked"]) == (None, None, 0)
    # A cell that was finished without it, or with fewer points, runs again; one with as many does not.
    found = data_of(sweep(tmp_path / "smoke", executor, WithCurve(), oracle=2))[0]
    assert (found["top1"], found["oracle"]) == (90.0, {"top1": 95.0, "step": 5})
    assert [job.snapshots for job in executor.jobs] == [0, 2]
    for oracle, jobs in ((1, 2), (0, 2), (3, 3)):
        sweep(tmp_path / "smoke", executor, WithCurve(), oracle=oracle)
        assert len(executor.jobs) == jobs
    seconds = found["seconds"]
    parts = ("setup", "paid_synthesis", "quantization", "evaluation", "unattributed")
    assert sum(seconds[part] for part in parts) == pytest.approx(seconds["wall"])


def test_opened_data_makes_a_record_invalid(tmp_path: Path) -> None:
    summary = sweep(tmp_path / "smoke", FakeExecutor(real_data_opened=["/data/test.npz"]), FakeEvaluator())
    assert data_of(summary)[0]["status"] == "invalid"
    assert "opened real data: /data/test.npz" in data_of(summary)[0]["error"]["message"]


def test_a_shared_source_shows_its_stand_alone_cost(tmp_path: Path) -> None:
    executor = FakeExecutor(
        counts={"images": 3}, reused={"id": "abcd", "seconds": 100.0, "counts": {"images": 64}, "peak_mib": 5.0}
    )
    record = data_of(sweep(tmp_path / "smoke", executor, FakeEvaluator()))[0]
    assert record["seconds"]["synthesis"] == 102.0
    assert record["seconds"]["paid_synthesis"] == 2.0
    assert record["reused_from"] == "abcd"
    assert record["counts"]["images"] == 67
    assert record["peak_mib"]["synthesis"] == 5.0


def test_plugins_hear_of_finished_records(tmp_path: Path) -> None:
    mine = tmp_path / "observer.py"
    mine.write_text(OBSERVER.read_text())
    sweep(tmp_path / "smoke", FakeExecutor(), FakeEvaluator(), plugins=load_plugins([mine]))
    assert mine.with_suffix(".seen").read_text() == "noise ok\n"


def test_an_evaluator_that_dies_costs_one_cell(tmp_path: Path) -> None:
    class Dying(FakeEvaluator):
        def ask(self, request: Mapping[str, Any], limit: float = 0.0) -> dict[str, Any]:
            if request["op"] == "evaluate":
                raise EvaluatorDiedError("the evaluator was killed by SIGKILL")
            return super().ask(request, limit)

    record = data_of(sweep(tmp_path / "smoke", FakeExecutor(), Dying()))[0]
    assert record["status"] == "failed"
    assert "killed by SIGKILL" in record["error"]["message"]
    written = json.loads(next((tmp_path / "smoke").glob("cells/*/attempt-1/record.json")).read_text())
    assert written["error"] == record["error"]


def test_an_evaluation_that_takes_too_long_costs_one_cell(tmp_path: Path) -> None:
    limits = []

    class Slow(FakeEvaluator):
        def ask(self, request: Mapping[str, Any], limit: float = 0.0) -> dict[str, Any]:
            limits.append((request["op"], limit))
            if request["op"] == "evaluate":
                raise EvaluationTimeoutError("the evaluation's time limit of 7 s was reached")
            return super().ask(request, limit)

    summary = sweep(tmp_path / "smoke", FakeExecutor(), Slow(), evaluation_limit=7.0)
    (record,) = data_of(summary)
    assert ("baseline", 7.0) in limits
    assert ("evaluate", 7.0) in limits
    assert (record["status"], record["error"]["type"]) == ("timeout", "EvaluationTimeoutError")
    assert record["error"]["phase"] == "evaluation"
    assert summary.failed == summary.records


def test_a_run_of_more_than_a_day_wants_yes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "timed_estimate", lambda *_: Estimate(50 * 3600.0, 1, 0))
    plugins = load_plugins()
    options = Options(tmp_path, None, "cpu")
    with pytest.raises(UsageError, match=r"about 50.0 h; add --yes, or choose a smaller budget: --budget medium"):
        run_plan(small_plan(plugins), plugins, options, Console(quiet=True))
    assert not (tmp_path / "smoke" / "cells").exists()


def test_unavailable_cells_leave_one_record(tmp_path: Path) -> None:
    plugins = load_plugins()
    (tmp_path / "data" / "val" / "n01440764").mkdir(parents=True)
    (tmp_path / "data" / "val" / "n01440764" / "a.JPEG").write_bytes(b"0")
    catalogue = Catalogue.discover([tmp_path / "data"])
    name = next(name for name in catalogue.names() if name.startswith("imagenet-"))
    grid = apply(load_grid("smoke", plugins), parse_selection(on=name, models="torchvision:resnet18", methods="noise"))
    plan = build_plan(grid, catalogue, plugins)
    options = Options(tmp_path, None, "cpu")
    for _ in range(2):
        summary, folder = run_plan(plan, plugins, options, Console(quiet=True))
        assert [record["status"] for record in data_of(summary)] == ["unavailable"]
        assert summary.failed == []
    assert len(list(folder.path.glob("cells/*/attempt-*"))) == 1
