from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tests.report.records import rows

from attempts import PLUGINS, cell_of, data_of, job_of
from dfqbench.plugins import load_plugins
from dfqbench.report import parse_layout, render
from dfqbench.report.formatting import duration
from dfqbench.run.execute import processes
from dfqbench.run.execute.cancellation import Cancellation
from dfqbench.run.execute.job import EvaluationTimeoutError
from dfqbench.run.execute.processes import EvaluatorProcess
from dfqbench.run.schedule.run_environment import Rules
from dfqbench.run.store.environment import Machine
from dfqbench.run.store.record import Record
from dfqbench.run.store.status import RETRIES
from pretend import run_smoke

FAULTY = [PLUGINS / "faulty" / "misbehaves.py"]
pytestmark = [pytest.mark.timeout(900), pytest.mark.slow]


def run(out: Path, methods: str, cancellation: Cancellation | None = None, **options: Any) -> list[dict[str, Any]]:
    return data_of(run_smoke(out, methods, cancellation, plugin_files=FAULTY, **({"grace": 2.0} | options)))


def test_harm_is_recorded_and_the_run_goes_on(tmp_path: Path) -> None:
    methods = "leaks,huge,crashes,leaves-children,writes-outside,noise"
    records = {record["method"]: record for record in run(tmp_path, methods, rules=Rules(memory_mib=3000))}
    status = {name: record["status"] for name, record in records.items()}
    assert status.pop("noise") in {"ok", "collapsed"}
    broken = ("crashes", "leaves-children")
    assert status == {"leaks": "oom", "huge": "oom", "writes-outside": "invalid"} | dict.fromkeys(broken, "failed")
    for name, message in {
        "crashes": "killed by SIGSEGV",
        "leaves-children": "ended with status 5",
        "writes-outside": "stray.txt",
    }.items():
        assert message in records[name]["error"]["message"]
    log = (tmp_path / "smoke" / "cells" / records["crashes"]["cell_id"] / "attempt-1" / "log.txt").read_text()
    assert "Segmentation fault" in log
    assert "string_at" in log


def test_mistakes_are_recorded_and_the_run_goes_on(tmp_path: Path) -> None:
    messages = {
        "diverges": "at step 13",
        "asks-for-bits": "set depends_on_bits = True",
        "own-student": "0.0 % of the multiply-accumulates, not ",
        "nan-images": "image of the source is not finite",
        "nan-student": "student's",
        "wrong-shape": "shape (64, 3, 5, 5), not (64, 1, 8, 8)",
        "no-batch": "shape ()",
    }
    records = {record["method"]: record for record in run(tmp_path, ",".join([*messages, "noise"]), executor="inline")}
    assert records.pop("noise")["status"] in {"ok", "collapsed"}
    status = {name: record["status"] for name, record in records.items()}
    assert status == dict.fromkeys(messages, "failed") | {"own-student": "invalid"}
    for name, message in messages.items():
        assert message in records[name]["error"]["message"]
    assert "plugin_student" in records["own-student"]["flags"]
    failed = tmp_path / "smoke" / "cells" / records["wrong-shape"]["cell_id"] / "attempt-1"
    assert "PluginError" in (failed / records["wrong-shape"]["error"]["traceback_file"]).read_text()


@pytest.mark.parametrize(
    ("method", "grace", "message", "stack"),
    [
        ("hangs", 2.0, "did not stop by itself and was killed", "in hangs"),
        # A library in the worker takes the first signal.
        ("takes", 20.0, "goes on from its last step", ""),
    ],
)
def test_worker_is_signalled_again_and_killed(
    method: str, grace: float, message: str, stack: str, tmp_path: Path
) -> None:
    cancellation = Cancellation()

    def cancel_when_working() -> None:
        # The plugin's folder is made just before its code runs.
        while not list(tmp_path.glob("smoke/cells/*/attempt-1/work")):
            time.sleep(0.05)
        time.sleep(1.0)
        cancellation.request("signal")

    with ThreadPoolExecutor(1) as pool:
        pool.submit(cancel_when_working)
        (record,) = run(tmp_path, method, cancellation, grace=grace)
    assert record["status"] == "preempted"
    assert message in record["error"]["message"]
    assert stack in next(tmp_path.glob("smoke/cells/*/attempt-1/log.txt")).read_text()


def test_time_limit(tmp_path: Path) -> None:
    (record,) = run(tmp_path, "slow", rules=Rules(time_limit=0.5), grace=60.0)
    assert record["status"] == "timeout"
    # The limit falls into the loading of libraries: nothing was begun, and nothing is lost.
    assert "the time limit of 0.5 s was reached; it kept no state" in record["error"]["message"]


@pytest.fixture(scope="module")
def parallel(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Record]]:
    """A run of four cells in two workers at once, on a machine of two cores: its folder and records."""
    out = tmp_path_factory.mktemp("parallel")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Machine, "here", lambda: Machine(2, 1e6, ()))
        return out, run_smoke(out, "zeroq,noise", bits="w4a4,w3a3", jobs=2).records


def test_parallel_and_fresh_runs_have_the_results_of_an_inline_one(
    parallel: tuple[Path, list[Record]], tmp_path: Path
) -> None:
    out, two = parallel[0], [record.as_dict() for record in parallel[1]]
    one = run(tmp_path, "zeroq,noise", bits="w4a4,w3a3", executor="inline")
    for first, second in zip(one, two, strict=True):
        for key in ("cell_id", "status", "top1", "correct", "counts", "fp_top1", "reused_from"):
            assert first[key] == second[key] or (key == "reused_from" and first["method"] == "zeroq")
    assert [record["reused_from"] for record in two if record["method"] == "zeroq"].count(None) == 1
    assert {tuple(record["flags"]) for record in one} == {("inline",)}
    description = json.loads(next((out / "smoke" / "environments").glob("*.json")).read_text())
    assert "PyTorch version" in description["torch"]["collect_env"]
    assert description["installed"]["torch"]
    assert description["deterministic"].startswith("yes")
    (again,) = run(out, "zeroq", rules=Rules(fresh=True))
    assert one[0]["correct"] == again["correct"]
    assert (two[0]["attempt"], again["attempt"], again["reused_from"], again["flags"]) == (1, 2, None, [])
    assert run_smoke(out, "zeroq", rules=Rules(retry=RETRIES["all"])).reused == 1


def test_cells_beside_others_on_the_cpu_are_flagged_and_show_cpu_seconds(parallel: tuple[Path, list[Record]]) -> None:
    _, records = parallel
    layout = parse_layout(("method",), ("scheme",), ("synthesis", "quantization"))
    shown = {row[0].split()[0].strip("_"): row[1:] for row in rows(render(records, "md", layout=layout))}
    for method in ("zeroq", "noise"):
        times = []
        for record in (record for record in records if record.method == method):
            assert record.flags == ["cpu_shared"]
            spent = record.cpu_seconds
            assert spent.synthesis is not None
            assert spent.quantization
            # One thread, and a little for the worker's others.
            assert spent.quantization < 1.2 * (record.seconds.quantization or 0.0) + 0.2
            times += [duration(spent.synthesis), duration(spent.quantization)]
        assert shown[method] == times


def test_time_limit_of_an_evaluator_ends_its_process_and_the_next_request_starts_another(tmp_path: Path) -> None:
    evaluator = EvaluatorProcess(tmp_path / "log.txt", threads=1, device="cpu")
    try:
        # Loading torch alone takes longer.
        with pytest.raises(EvaluationTimeoutError, match=r"limit of 0.05 s was reached; give it more with --evalu"):
            evaluator.ask({"op": "baseline"}, limit=0.05)
        answer = evaluator.ask({"op": "nothing"}, limit=120.0)
        assert answer["error"]["type"] == "KeyError"
    finally:
        evaluator.close()


def test_signals_of_a_batch_system_do_not_end_an_evaluator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spawned = []

    def spawn(*arguments: Any, **options: Any) -> subprocess.Popen[str]:
        spawned.append(processes_spawn(*arguments, **options))
        return spawned[-1]

    processes_spawn = processes.spawn
    monkeypatch.setattr(processes, "spawn", spawn)
    evaluator = EvaluatorProcess(tmp_path / "log.txt", threads=1, device="cpu")
    evaluator.start()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        os.kill(spawned[0].pid, number)
    assert "torch" in evaluator.ask({"op": "environment"})
    evaluator.close()
    assert (len(spawned), spawned[0].returncode) == (1, 0)
    assert not (tmp_path / "log.txt").exists(), "an empty log"


def test_worker_ends_once_another_run_has_its_cell(tmp_path: Path) -> None:
    # Its parent may be suspended, and cannot end it.
    (tmp_path / "cell.lease").write_text("token=another\n")
    plugins = load_plugins()
    leased = {"lease": str(tmp_path / "cell.lease"), "lease_token": "its own"}
    job_of(cell_of("noise", plugins), tmp_path, "attempt", plugins, **leased).write(tmp_path / "job.json")
    command = [sys.executable, "-m", "dfqbench.run.worker.main", str(tmp_path / "job.json")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as worker:
        assert worker.stderr is not None
        assert "another run has taken this cell over" in worker.stderr.read()
    assert worker.returncode == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
def test_signals_of_batch_systems_stop_a_run(number: signal.Signals) -> None:
    cancellation = Cancellation()
    with cancellation.on_signals():
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)
    assert (cancellation.reason, cancellation.signal_name) == ("signal", number.name)
    assert cancellation.hurry == (number == signal.SIGTERM)
