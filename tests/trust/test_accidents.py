"""What a plugin does ends its own cell, never the run."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from tests.cli.calls import Call
from tests.trust.test_records import foreign

import accidents
from attempts import attempt, cell_of, data_of, job_of
from dfqbench.api.errors import InputError, Invalid, Skip
from dfqbench.plugins import load_plugins
from dfqbench.run.evaluate.evaluator import Evaluator
from dfqbench.run.execute import processes
from dfqbench.run.execute.cancellation import Cancellation
from dfqbench.run.execute.events import Failed, Phase, SharedJob, Sharing
from dfqbench.run.execute.failure import describe_failure
from dfqbench.run.execute.job import EventReader, Job, Outcome
from dfqbench.run.execute.processes import EvaluatorProcess
from dfqbench.run.schedule.run import Options, run_plan
from dfqbench.run.schedule.scheduler import StorageError, Summary
from dfqbench.run.store import run_folder
from dfqbench.run.store.run_folder import RunFolder, read_record, read_records
from pretend import Executor, done, plan_of, run_smoke, schedule

FILES = [Path(accidents.__file__)]
PLUGINS = load_plugins(FILES)


@pytest.fixture(autouse=True)
def _folder_as_before(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def inline(methods: str, **options: Any) -> tuple[Summary, list[dict[str, Any]]]:
    """A run in this process, into a relative folder; the summary and its records by the plan's order."""
    summary = run_smoke(Path("out"), methods, bits="w4a4", plugin_files=FILES, executor="inline", **options)
    return summary, data_of(summary)


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Records of one inline run of all accidents, by method; `noise` is the first cell, `working-folder` the last."""
    out = tmp_path_factory.mktemp("inline")
    others = [name for name in accidents.ACCIDENTS if name not in {"removes-run", "working-folder"}]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(out)
        summary, records = inline(",".join(["noise", *others, "working-folder"]))
        assert Path.cwd() == out
    assert len(summary.failed) == len(others)
    for record in records:
        file = out / "out" / "smoke" / "cells" / record["cell_id"] / "attempt-1" / "record.json"
        assert not file.parent.is_symlink()
        assert not file.parent.parent.is_symlink()
        written = read_record(file)
        assert (written.method, written.status) == (record["method"], record["status"])
    return {record["method"]: record for record in records}


@pytest.mark.parametrize("method", sorted(accidents.DAMAGING - {"removes-run"}))
def test_damaged_folder_fails_its_cell(method: str, records: dict[str, dict[str, Any]]) -> None:
    record = records[method]
    assert record["status"] == "failed"
    assert record["error"]["message"].startswith("plugin code ")
    assert "it may write to ctx.workdir only" in record["error"]["message"]
    assert record["top1"] is None


def test_other_cells_are_measured(records: dict[str, dict[str, Any]]) -> None:
    assert {name for name, record in records.items() if record["status"] == "ok"} == {"noise", "working-folder"}


@pytest.mark.parametrize(
    ("method", "status", "message"),
    [
        ("exits-well", "failed", "plugin code ended the process with status 0"),
        ("exits-with-text", "failed", "plugin code ended the process with status 1: text"),
        ("interrupts", "failed", "KeyboardInterrupt: no message"),
        ("own-base-exception", "failed", "Bye: farewell"),
        ("message-raises", "failed", "MuteError: its message cannot be read"),
        ("message-is-odd", "failed", "ValueError: caf\\udce9"),
        ("memory-runs-out", "oom", "RuntimeError: DefaultCPUAllocator: not enough memory"),
    ],
)
def test_exception_fails_its_cell(
    method: str, status: str, message: str, records: dict[str, dict[str, Any]]
) -> None:
    error = records[method]["error"]
    assert (records[method]["status"], error["phase"], error["plugin"]) == (status, "synthesis", method)
    assert error["message"].startswith(message)


def test_long_message_and_type_are_shortened(records: dict[str, dict[str, Any]]) -> None:
    error = records["message-is-long"]["error"]
    assert {len(error[key]) < 1_100 for key in ("type", "message")} == {True}
    assert len(error["traceback"]) < 20_100


def test_run_folder_that_is_removed_is_made_again(tmp_path: Path) -> None:
    summary, records = inline("removes-run,noise")
    assert [record["status"] for record in records] == ["failed", "ok"]
    assert len(summary.failed) == 1
    assert len(RunFolder(tmp_path / "out" / "smoke").records()) == 2


def test_ctrl_c_stops_an_inline_run(monkeypatch: pytest.MonkeyPatch) -> None:
    cancellation = Cancellation()
    monkeypatch.setattr(run_environment.RunEnvironment, "describe_torch", lambda *_: os.kill(os.getpid(), signal.SIGINT))
    summary, records = inline("noise,working-folder", cancellation=cancellation)
    assert cancellation.reason == "interrupt"
    assert (records[0]["status"], len(records), summary.missing) == ("preempted", 1, 2)


def test_ctrl_c_outside_a_run_is_not_a_failure_of_the_plugin(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        attempt(job_of(cell_of("interrupts", PLUGINS), tmp_path, "attempt", PLUGINS))


@pytest.mark.slow
def test_processes_of_their_own_give_the_same_rows(call: Call, tmp_path: Path) -> None:
    plugin = ("--plugin", FILES[0], "--bits", "w4a4", "--limit", "60", "--out", "out")
    methods = "removes-attempt,exits-well,working-folder"
    output = call("run", "--grid", "smoke", "--methods", methods, *plugin)
    assert output.status == 1
    assert "2 failed" in output.err
    assert "records and tables: out/smoke" in output.err
    assert "plugin code removed or replaced the attempt's folder" in output.err
    assert "plugin code ended the process with status 0" in output.err
    records = call("table", "--out", "out", "--format", "json").json
    assert {record["method"]: record["status"] for record in records} == {
        "removes-attempt": "failed",
        "exits-well": "failed",
        "working-folder": "ok",
    }


def test_folder_that_is_removed_during_the_evaluation_is_made_again(tmp_path: Path) -> None:
    executor = Executor(lambda *_: done())
    ask = executor.asked.ask

    def removing(request: Any, limit: float = 0.0) -> dict[str, Any]:
        if request["op"] == "evaluate":
            shutil.rmtree(tmp_path / "cells")
            (tmp_path / "cells").mkdir()
        return ask(request, limit)

    executor.asked.ask = removing  # type: ignore[method-assign]
    summary = schedule(tmp_path, plan_of("noise", "w4a4"), executor)
    assert [record.status for record in summary.records] == ["ok"]
    assert len(list(tmp_path.glob("cells/*/attempt-1/record.json"))) == 1


def test_full_disk_still_stops_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(RunFolder, "write_record", full)
    plan = plan_of("noise,working-folder", "w4a4", PLUGINS)
    executor = Executor(lambda *_: done())
    monkeypatch.setattr(run, "_executor", lambda *_: (executor, ""))
    with pytest.raises(StorageError, match="^out/smoke cannot be used: No space left on device"):
        run.run_plan(plan, PLUGINS, run.Options(Path("out"), None, "cpu"), Console(quiet=True))
    assert len(executor.jobs) < 3


def test_working_folder_survives_the_import_of_a_plugin(tmp_path: Path) -> None:
    file = tmp_path / "mover.py"
    file.write_text("import os\nos.chdir('/')\n" + FILES[0].read_text().replace("from __future__ import annotations", ""))
    assert "working-folder" in load_plugins([file]).methods
    assert Path.cwd() == tmp_path


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 1 bytes"), "oom"),
        (MemoryError(), "oom"),
        (InputError("no file", "look"), "failed"),
        (Invalid("no", "look"), "invalid"),
        (Skip("no"), "skipped"),
        (SystemExit(), "failed"),
    ],
)
def test_worker_and_evaluator_describe_errors_alike(
    error: BaseException, status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(Evaluator, "_data", fail)
    answer = Evaluator(1, "cpu").answer({"op": "baseline", "model": plan_model()})
    monkeypatch.setattr(Attempt, "begin", fail)
    event = attempt(job_of(cell_of("noise", PLUGINS), tmp_path, "attempt", PLUGINS)).last
    assert isinstance(event, Failed)
    assert answer["status"] == event.status == status
    assert answer["error"]["message"] == event.message
    assert answer["error"]["type"] == event.type


def test_log_of_the_evaluator_is_shortened(tmp_path: Path) -> None:
    log = tmp_path / "evaluator.log"
    log.write_bytes(b"first\n" + bytes(3 * LOG_BYTES))
    EvaluatorProcess(log, threads=1, device="cpu").ask
    evaluator = EvaluatorProcess(log, threads=1, device="cpu")
    evaluator.start()
    evaluator.close()
    assert log.stat().st_size < LOG_BYTES + 100
    assert log.read_bytes().startswith(b"first\n")
