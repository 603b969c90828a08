"""Hooks that observe a run, and `run --track`; the tracker's module is one that notes its calls."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from functools import cache
from io import StringIO
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from rich.console import Console

from dfqbench.api import UsageError
from dfqbench.plugins import Plugins, load_plugins
from dfqbench.run.execute.cancellation import Cancellation
from dfqbench.run.execute.events import Phase, Progress
from dfqbench.run.execute.job import Job, OnEvent, Outcome
from dfqbench.run.plan.estimate import History
from dfqbench.run.plan.plan import Plan
from dfqbench.run.schedule import observers
from dfqbench.run.schedule.progress import Display
from dfqbench.run.schedule.run import Options, run_plan
from dfqbench.run.schedule.run_environment import RunEnvironment
from dfqbench.run.schedule.scheduler import Scheduler, Summary
from dfqbench.run.schedule.tracker import load_tracker
from dfqbench.run.store.run_folder import RunFolder
from pretend import Executor, done, plan_of, schedule

cached_plan = cache(plan_of)
CURRENT: ContextVar[TrackedRun | None] = ContextVar("current", default=None)


class TrackedRun:
    def __init__(self, module: FakeTracker, arguments: dict[str, Any]) -> None:
        self.arguments = arguments
        self.logged: list[dict[str, Any]] = []
        self.finished = 0
        self._module = module

    def log(self, numbers: dict[str, Any]) -> None:
        assert not self.finished
        self._module.act()
        self.logged.append(numbers)

    def finish(self) -> None:
        self.finished += 1


class FakeTracker(ModuleType):
    """As trackio, a new run ends the one that is open in the same context; as wandb, it may take `reinit`."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.runs: list[TrackedRun] = []
        self.act: Callable[[], object] = lambda: None

    def init(self, *, project: str, name: str, config: dict[str, Any], reinit: str = "") -> TrackedRun:
        if (current := CURRENT.get()) is not None and not current.finished:
            current.finish()
        run = TrackedRun(self, {"project": project, "name": name, "config": config, "reinit": reinit})
        CURRENT.set(run)
        self.runs.append(run)
        return run

    def log(self, numbers: dict[str, Any]) -> None:
        raise AssertionError("which run would that be?")

    def finish(self) -> None:
        raise AssertionError("which run would that be?")


@pytest.fixture
def tracker(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeTracker]:
    module = FakeTracker("fake_tracker")
    monkeypatch.setitem(sys.modules, "fake_tracker", module)
    return module


def tracked() -> Plugins:
    plugins = load_plugins()
    load_tracker("fake_tracker").install(plugins)
    return plugins


def run_plan_of(folder: Path, plan: Plan, executor: Executor, plugins: Plugins) -> tuple[Summary, str]:
    """Run a plan and return the summary and what was printed."""
    console = Console(file=StringIO(), width=200)
    env = RunEnvironment(RunFolder(folder), plugins, "cpu", description={})
    summary = Scheduler(env, executor, Display(console, 1), History([])).run(plan.cells)
    return summary, console.file.getvalue()  # type: ignore[attr-defined]


def two_steps(job: Job, on_event: OnEvent, cancellation: Cancellation) -> Outcome:
    for step in (1, 2):
        on_event(Progress(Phase.SYNTHESIS, step, 3, {"loss": 1.0 / step}))
    on_event(Progress(Phase.SYNTHESIS, 3, 3, {}))
    return done()


@pytest.mark.parametrize("in_process", [False, True])
def test_tracker_gets_steps_and_results_in_order(in_process: bool, tracker: FakeTracker, tmp_path: Path) -> None:
    executor = Executor(two_steps, slots=1)
    executor.in_process = in_process
    summary, _ = run_plan_of(tmp_path / "mine", cached_plan("zeroq"), executor, tracked())
    [run], [record] = tracker.runs, summary.records
    config = run.arguments["config"]
    assert run.arguments["project"] == "dfqbench-mine"
    assert run.arguments["name"] == f"zeroq {record.model.name} {record.scheme.label} seed 0"
    assert run.arguments["reinit"] == "create_new"
    assert (config["method"], config["cell_id"], config["params"]) == ("zeroq", record.cell_id, record.params)
    *steps, results = run.logged
    assert steps == [{"synthesis/step": step, "synthesis/loss": 1.0 / step} for step in (1, 2)]
    assert (results["status"], results["top1"], results["drop"]) == ("ok", 90.0, 0.0)
    assert results["seconds/wall"] == record.seconds.wall
    assert run.finished == 1


def test_cells_at_once_do_not_mix(tracker: FakeTracker, tmp_path: Path) -> None:
    both = threading.Barrier(2, timeout=20)

    def work(job: Job, on_event: OnEvent, cancellation: Cancellation) -> Outcome:
        for step in range(1, 6):
            both.wait()
            on_event(Progress(Phase.SYNTHESIS, step, 5, {job.method: float(step)}))
        both.wait()
        return done()

    run_plan_of(tmp_path, cached_plan("zeroq,noise"), Executor(work), tracked())
    assert {run.arguments["config"]["method"] for run in tracker.runs} == {"zeroq", "noise"}
    for run in tracker.runs:
        method = run.arguments["config"]["method"]
        assert [numbers[f"synthesis/{method}"] for numbers in run.logged[:-1]] == [1.0, 2.0, 3.0, 4.0, 5.0]
        assert (run.logged[-1]["status"], run.finished) == ("ok", 1)


def test_cells_that_were_not_run_or_failed(tracker: FakeTracker, tmp_path: Path) -> None:
    failed = Outcome("failed", error={"type": "ValueError", "message": "too bad", "phase": None})
    plan = cached_plan("zeroq")
    run_plan_of(tmp_path / "failed", plan, Executor(lambda *_: failed), tracked())
    assert (tracker.runs[0].logged[0]["status"], tracker.runs[0].logged[0]["error"]) == ("failed", "too bad")
    record = {"cell_id": "00", "status": "unavailable"}
    assert tracked().record_finished(record) == []
    assert len(tracker.runs) == 1


@pytest.mark.parametrize("function", ["init", "log"])
def test_failing_tracker_is_reported_once_and_ends_no_run(
    function: str, tracker: FakeTracker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls = []

    def fail(**arguments: Any) -> TrackedRun:
        calls.append(arguments)
        raise ConnectionError("no network")

    monkeypatch.setattr(tracker, "act" if function == "log" else "init", fail)
    summary, printed = run_plan_of(tmp_path, cached_plan("zeroq,noise"), Executor(two_steps), tracked())
    assert [record.status for record in summary.records] == ["ok", "ok"]
    assert printed.count("no network") == 1
    assert "plugin fake_tracker (--track) failed in progress: ConnectionError: no network; the run goes on" in printed
    # Without a network, `init` may take long: it is called once for each cell, not for each step.
    assert len(calls) == (2 if function == "init" else 6)


def test_slow_tracker_holds_up_neither_workers_nor_the_end(
    tracker: FakeTracker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(observers, "END_SECONDS", 0.1)
    answered = threading.Event()
    monkeypatch.setattr(tracker, "act", lambda: answered.wait(20))
    summary, printed = run_plan_of(tmp_path, cached_plan("zeroq"), Executor(two_steps), tracked())
    answered.set()
    assert summary.records[0].status == "ok"
    assert "observers (plugins, --track) did not end within 0 s; the rest is lost" in printed


def test_module_without_runs_is_reported(tracker: FakeTracker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tracker, "init", lambda **_: None)
    _, printed = run_plan_of(tmp_path, cached_plan("zeroq"), Executor(two_steps), tracked())
    assert "init returned NoneType; return a run with log and finish" in printed


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("trackio", "pip install 'dfqbench[track]'"),
        ("wandb", "pip install wandb"),
        ("no_such_tracker", "an importable module with init, log, finish"),
        ("", "an importable module"),
        ("..x", "an importable module"),
    ],
)
def test_missing_module_is_refused(name: str, hint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for known in ("trackio", "wandb"):
        monkeypatch.setitem(sys.modules, known, None)
    with pytest.raises(UsageError, match="cannot be imported") as refusal:
        load_tracker(name)
    assert hint in str(refusal.value)


def test_module_without_the_functions_is_refused() -> None:
    with pytest.raises(UsageError, match="--track: module 'json' has no init, log, finish; name trackio, wandb, or"):
        load_tracker("json")


PRINTS = """
from dfqbench.api import hookimpl

@hookimpl
def dfqbench_progress(cell, phase, step, total, scalars):
    print(cell["label"], cell["scheme"]["label"], phase, step, total, scalars)
    cell["label"] = "spoilt"

@hookimpl
def dfqbench_record_finished(record):
    print(record["label"], record["status"])
    raise SystemExit(1)
"""


@pytest.mark.parametrize("in_process", [False, True])
def test_plugins_get_progress_and_their_output_goes_to_stderr(
    in_process: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "prints.py"
    file.write_text(PRINTS)
    executor = Executor(two_steps, slots=1)
    executor.in_process = in_process
    summary, printed = run_plan_of(tmp_path / "run", cached_plan("zeroq,noise"), executor, load_plugins([file]))
    output, errors = capsys.readouterr()
    assert output == ""
    assert errors.splitlines()[:4] == [
        "zeroq w4a4@gdfq synthesis 1 3 {'loss': 1.0}",
        "zeroq w4a4@gdfq synthesis 2 3 {'loss': 0.5}",
        "zeroq w4a4@gdfq synthesis 3 3 {}",
        "zeroq ok",
    ]
    assert [record.status for record in summary.records] == ["ok", "ok"]
    assert printed.count("failed in record_finished: it called sys.exit(1)") == 1


def test_each_record_is_observed_by_the_run_that_wrote_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "prints.py"
    file.write_text(PRINTS)

    def work(job: Job, on_event: OnEvent, cancellation: Cancellation) -> Outcome:
        # Another run finishes the second cell meanwhile.
        schedule(tmp_path / "run", cached_plan("noise"), Executor(lambda *_: done(), slots=1))
        return done()

    summary, _ = run_plan_of(
        tmp_path / "run", cached_plan("zeroq,noise"), Executor(work, slots=1), load_plugins([file])
    )
    assert [record.status for record in summary.records] == ["ok", "ok"]
    assert capsys.readouterr().err == "zeroq ok\n"


@pytest.mark.slow
def test_tracker_gets_losses_of_workers(tracker: FakeTracker, tmp_path: Path) -> None:
    plugins = tracked()
    run_plan(
        plan_of("zeroq", plugins=plugins, limit=60),
        plugins,
        Options(tmp_path, None, "cpu"),
        Console(quiet=True),
    )
    assert any("synthesis/loss" in numbers for run in tracker.runs for numbers in run.logged)
    assert [run.logged[-1]["status"] for run in tracker.runs] == ["ok"]
