"""What a plugin does ends its own cell, never the run."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import IO, Any

import pytest
import tests.cli.conftest as command_line
from rich.console import Console
from tests.cli.calls import Call
from tests.report.records import record as record_of

import accidents
from attempts import attempt, cell_of, data_of, job_of
from dfqbench.api.errors import InputError, Invalid, Skip
from dfqbench.plugins import load_plugins
from dfqbench.run.evaluate.evaluator import Evaluator
from dfqbench.run.execute import processes
from dfqbench.run.execute.cancellation import Cancellation
from dfqbench.run.execute.events import Failed
from dfqbench.run.execute.job import Job, Outcome
from dfqbench.run.execute.processes import LOG_BYTES, EvaluatorProcess
from dfqbench.run.plan.plan import Plan
from dfqbench.run.schedule import run
from dfqbench.run.schedule.run_environment import RunEnvironment
from dfqbench.run.schedule.scheduler import StorageError, Summary
from dfqbench.run.store import run_folder
from dfqbench.run.store.files import DIGEST, RECORD, read_regular
from dfqbench.run.store.record import Record
from dfqbench.run.store.run_folder import RunFolder, read_record, read_records
from dfqbench.run.worker.attempt import Attempt
from pretend import Executor, done, plan_of, run_smoke, schedule

FILES = [Path(accidents.__file__)]
PLUGINS = load_plugins(FILES)
call = command_line.call


@pytest.fixture(autouse=True)
def _folder_as_before(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def inline(methods: str, **options: Any) -> tuple[Summary, list[dict[str, Any]]]:
    """A run in this process, into a relative folder; the summary and its records by the plan's order."""
    summary = run_smoke(Path("out"), methods, bits="w4a4", plugin_files=FILES, executor="inline", **options)
    return summary, data_of(summary)


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Records of one inline run of the accidents, by method; `working-folder` is the last cell."""
    out = tmp_path_factory.mktemp("inline")
    others = [name for name in accidents.ACCIDENTS if name not in {"removes-run", "working-folder"}]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(out)
        summary, records = inline(",".join([*others, "working-folder"]))
        assert Path.cwd() == out
    assert len(summary.failed) == len(others)
    return {record["method"]: record for record in records}


def test_other_cells_are_measured(records: dict[str, dict[str, Any]]) -> None:
    assert [name for name, record in records.items() if record["status"] == "ok"] == ["working-folder"]


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("exits-well", "plugin code ended the process with status 0"),
        ("exits-with-text", "plugin code ended the process with status 1: text"),
        ("interrupts", "KeyboardInterrupt: no message"),
        ("own-base-exception", "Bye: farewell"),
        ("message-raises", "MuteError: its message cannot be read"),
    ],
)
def test_accident_fails_its_cell(method: str, message: str, records: dict[str, dict[str, Any]]) -> None:
    record = records[method]
    assert (record["status"], record["error"]["message"], record["error"]["plugin"]) == ("failed", message, method)


def test_removed_attempt_is_a_broken_rule(records: dict[str, dict[str, Any]]) -> None:
    record = records["removes-attempt"]
    assert record["status"] == "invalid"
    assert "plugin code wrote into the results outside its folder" in record["error"]["message"]
    assert "plugin code removed or replaced the attempt's folder; it may write to" in record["error"]["message"]


def test_long_message_and_type_are_shortened(records: dict[str, dict[str, Any]]) -> None:
    error = records["message-is-long"]["error"]
    assert {len(error[key]) < 1_100 for key in ("type", "message")} == {True}
    assert len(error["traceback"]) < 20_100


@pytest.fixture(scope="module")
def plan() -> Plan:
    """Three cells."""
    return plan_of("noise,zeroq,dffg", "w4a4", PLUGINS)


def replace_with(path: Path, target: Path | None) -> None:
    shutil.rmtree(path)
    if target is None:
        path.write_text("a file")
    else:
        path.symlink_to(target)


DAMAGES: dict[str, Callable[[Path, Path], object]] = {
    "attempt removed": lambda attempt, _: shutil.rmtree(attempt),
    "cell removed": lambda attempt, _: shutil.rmtree(attempt.parent),
    "cells removed": lambda attempt, _: shutil.rmtree(attempt.parents[1]),
    "attempt a file": lambda attempt, _: replace_with(attempt, None),
    "attempt a link": replace_with,
    "attempt a dangling link": lambda attempt, _: replace_with(attempt, attempt.with_name("nowhere")),
    "cell a file": lambda attempt, _: replace_with(attempt.parent, None),
    "cell a link": lambda attempt, earlier: replace_with(attempt.parent, earlier.parent),
    "without rights": lambda attempt, _: attempt.chmod(0o500),
    "record a folder": lambda attempt, _: (attempt / RECORD / "inner").mkdir(parents=True),
    "traceback a folder": lambda attempt, _: (attempt / "traceback.txt" / "inner").mkdir(parents=True),
    "record forged": lambda attempt, earlier: shutil.copy(earlier / RECORD, attempt),
    "record a link": lambda attempt, earlier: (attempt / RECORD).symlink_to(earlier / RECORD),
    "digest a link": lambda attempt, earlier: (attempt / DIGEST).symlink_to(earlier / DIGEST),
    "digest a pipe": lambda attempt, _: os.mkfifo(attempt / DIGEST),
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_folder_fails_its_cell(damage: str, plan: Plan, tmp_path: Path) -> None:
    fails = damage in {"attempt removed", "traceback a folder"}

    def work(job: Job, *_: object) -> Outcome:
        attempts.append(Path(job.attempt))
        if len(attempts) == 2:
            DAMAGES[damage](attempts[1], attempts[0])
            if fails:
                return Outcome("failed", error={"type": "E", "message": "no file", "traceback": "at line 1"})
        return done()

    attempts: list[Path] = []
    summary = schedule(tmp_path, plan, Executor(work, slots=1), plugins=PLUGINS)
    assert [record.status for record in summary.records] == ["ok", "failed", "ok"]
    error = summary.records[1].error
    assert error is not None
    assert error.message.startswith("plugin code ")
    assert error.message.endswith("; it may write to ctx.workdir only")
    for attempt_folder, record in zip(attempts, summary.records, strict=True):
        assert attempt_folder.resolve() == attempt_folder
        if damage != "cells removed" or record is not summary.records[0]:
            written = read_record(attempt_folder / RECORD)
            assert (written.method, written.status) == (record.method, record.status)
    assert (attempts[1] / "traceback.txt").is_file() == fails


def test_run_folder_that_is_removed_is_made_again(tmp_path: Path) -> None:
    summary, records = inline("removes-run,noise")
    assert [record["status"] for record in records] == ["invalid", "ok"]
    assert len(summary.failed) == 1
    assert len(RunFolder(tmp_path / "out" / "smoke").records()) == 2


def test_ctrl_c_stops_an_inline_run(monkeypatch: pytest.MonkeyPatch) -> None:
    cancellation = Cancellation()
    monkeypatch.setattr(RunEnvironment, "describe_torch", lambda *_: os.kill(os.getpid(), signal.SIGINT))
    summary, records = inline("noise,working-folder", cancellation=cancellation)
    assert cancellation.reason == "interrupt"
    assert (records[0]["status"], len(records), summary.missing) == ("preempted", 1, 2)


def test_ctrl_c_outside_a_run_is_not_a_failure_of_the_plugin(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        attempt(job_of(cell_of("interrupts", PLUGINS), tmp_path, "attempt", PLUGINS))


@pytest.mark.slow
def test_processes_of_their_own_give_the_same_rows(call: Call, tmp_path: Path) -> None:
    plugin = ("--plugin", FILES[0], "--bits", "w4a4", "--limit", "60", "--jobs", "1", "--out", "out")
    methods = "removes-attempt,exits-well,working-folder"
    output = call("run", "--grid", "smoke", "--methods", methods, *plugin)
    assert output.status == 1
    assert "2 failed" in output.err
    assert "table: out/smoke/table.txt, also" in output.err
    assert "plugin code removed or replaced the attempt's folder" in output.err
    assert "plugin code ended the process with status 0" in output.err
    records = call("table", "--out", "out", "--format", "json").json
    assert {record["method"]: record["status"] for record in records} == {
        "removes-attempt": "invalid",
        "exits-well": "failed",
        "working-folder": "ok",
    }


def test_folder_that_is_removed_during_the_evaluation_is_made_again(tmp_path: Path) -> None:
    executor = Executor(lambda *_: done())
    ask = executor.asked.ask

    def removing(request: Any, limit: float = 0.0, on_progress: Any = None) -> dict[str, Any]:
        if request["op"] == "evaluate":
            shutil.rmtree(tmp_path / "cells")
            (tmp_path / "cells").mkdir()
        return ask(request, limit, on_progress)

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
    file.write_text(f"{FILES[0].read_text()}\n\nos.chdir('/')\n")
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
    answer = Evaluator(1, "cpu").answer({"op": "evaluate", "model": {}})
    monkeypatch.setattr(Attempt, "begin", fail)
    event = attempt(job_of(cell_of("noise", PLUGINS), tmp_path, "attempt", PLUGINS)).last
    assert isinstance(event, Failed)
    assert answer["status"] == event.status == status
    assert answer["error"]["message"] == event.message
    assert answer["error"]["type"] == event.type


def start_and_close(monkeypatch: pytest.MonkeyPatch, log: Path) -> None:
    """Start an evaluator's process, in whose place another says that it is ready, and end it."""
    command, pipe = [sys.executable, "-c", "print('{}', flush=True); input()"], subprocess.PIPE

    def spawn(_module: str, _arguments: list[str], log: IO[str], **_: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=log, text=True)

    monkeypatch.setattr(processes, "spawn", spawn)
    evaluator = EvaluatorProcess(log, threads=1, device="cpu")
    evaluator.start()
    evaluator.close()


def test_log_of_the_evaluator_is_shortened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "evaluator.log"
    log.write_bytes(b"first\n" + bytes(3 * LOG_BYTES))
    start_and_close(monkeypatch, log)
    assert log.stat().st_size < LOG_BYTES + 100
    assert log.read_bytes().startswith(b"first\n")


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", [Path.mkdir, os.mkfifo])
def test_log_of_the_evaluator_that_is_no_file_is_set_aside(
    kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind(tmp_path / "evaluator.log")
    start_and_close(monkeypatch, tmp_path / "evaluator.log")
    assert [path.suffix for path in tmp_path.iterdir()] == [".aside"]


@pytest.mark.timeout(20)
def test_signal_during_a_wait_blocks_nothing() -> None:
    cancellation, lines = Cancellation(), 0

    def interrupt(frame: FrameType, event: str, _argument: object) -> Any:
        nonlocal lines
        # Every line of the wait, also those that hold a lock.
        lines += 1
        signal.raise_signal(signal.SIGINT)
        return interrupt

    with cancellation.on_signals():
        before = sys.gettrace()
        sys.settrace(interrupt)
        try:
            cancellation.wait(0.01)
        finally:
            sys.settrace(before)
    assert cancellation.reason == "interrupt"
    assert lines > 1


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EACCES, errno.EIO])
def test_digest_that_cannot_be_read_is_not_a_falsified_record(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder(tmp_path / "run")
    for cell in ("aa11", "bb22"):
        attempt_folder, _ = folder.new_attempt(cell)
        folder.write_record(attempt_folder, record_of(cell))

    def refuse(path: str | Path, most: int) -> bytes:
        if os.fspath(path).endswith(DIGEST) and "bb22" in os.fspath(path):
            raise OSError(number, os.strerror(number), str(path))
        return read_regular(path, most)

    monkeypatch.setattr(run_folder, "read_regular", refuse)
    records, (warning,) = read_records(tmp_path / "run")
    assert [record.status for record in records] == ["ok"]
    assert warning == f"{attempt_folder / RECORD} is not a readable record: {os.strerror(number)}; it is left out"


@pytest.mark.timeout(20)
def test_odd_files_of_a_training_are_not_copied(tmp_path: Path) -> None:
    first, _ = RunFolder(tmp_path).new_attempt("aa")
    second, _ = RunFolder(tmp_path).new_attempt("bb")
    (first.parent / "training").mkdir()
    (first.parent / "training" / "images-1.safetensors").write_bytes(b"1")
    (first.parent / "training" / "nowhere").symlink_to("absent")
    os.mkfifo(first.parent / "training" / "pipe")
    run_folder.CachedStudent(Record(), first).copy_to(second)
    assert [file.name for file in (second.parent / "training").iterdir()] == ["images-1.safetensors"]
