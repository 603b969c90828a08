"""Real workers in this process's hands: plugins that do harm, limits, and stops."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from attempts import data_of
from dfqbench.grid import apply, load_grid, parse_selection
from dfqbench.plugins import load_plugins
from dfqbench.run.execute.cancellation import Cancellation
from dfqbench.run.plan.plan import build_plan
from dfqbench.run.schedule.run import Options, run_plan
from dfqbench.run.schedule.run_environment import Rules
from dfqbench.run.schedule.scheduler import Summary
from dfqbench.run.store.status import RETRIES
from dfqbench.targets.catalogue import Catalogue

FAULTY = Path(__file__).parent.parent / "plugins" / "faulty"
pytestmark = [pytest.mark.timeout(900), pytest.mark.slow]


def swept(
    out: Path,
    methods: str,
    rules: Rules | None = None,
    stop: Cancellation | None = None,
    *selection: str,
    **options: Any,
) -> Summary:
    plugins = load_plugins([FAULTY / "harmful.py", FAULTY / "misbehaves.py"])
    wanted = parse_selection(methods=methods, limit=60, bits=",".join(selection) or None)
    # One thread, so that two jobs fit on two cores.
    grid = apply(load_grid("smoke", plugins), wanted).model_copy(update={"threads": 1})
    plan = build_plan(grid, Catalogue.discover([]), plugins)
    settings: dict[str, Any] = {"rules": rules or Rules(), "grace": 2.0}
    return run_plan(plan, plugins, Options(out, None, "cpu", **(settings | options)), Console(quiet=True), stop)[0]


def test_harm_is_a_row(tmp_path: Path) -> None:
    methods = "leaks,huge,crashes,leaves-children,writes-outside,nan-images,nan-student,wrong-shape,no-batch,noise"
    summary = swept(tmp_path, methods, Rules(memory_mib=3000))
    found = {record["method"]: record for record in data_of(summary)}
    status = {name: record["status"] for name, record in found.items()}
    assert status == {
        "leaks": "oom",
        "huge": "oom",
        "crashes": "failed",
        "leaves-children": "failed",
        "writes-outside": "invalid",
        "nan-images": "failed",
        "nan-student": "failed",
        "wrong-shape": "failed",
        "no-batch": "failed",
        "noise": status["noise"],
    }
    assert status["noise"] in {"ok", "collapsed"}
    message = {name: (record["error"] or {}).get("message", "") for name, record in found.items()}
    assert "killed by SIGSEGV" in message["crashes"]
    assert "ended with status 5" in message["leaves-children"]
    assert "stray.txt" in message["writes-outside"]
    assert "image of the source is not finite" in message["nan-images"]
    assert "student's" in message["nan-student"]
    assert "shape (64, 3, 5, 5), not (N, 1, 8, 8)" in message["wrong-shape"]
    assert "shape ()" in message["no-batch"]
    folder = tmp_path / "smoke" / "cells"
    log = next((folder / found["crashes"]["cell_id"]).glob("attempt-1/log.txt")).read_text()
    assert "Segmentation fault" in log
    assert "string_at" in log
    failed = next((folder / found["wrong-shape"]["cell_id"]).glob("attempt-1"))
    assert "PluginError" in (failed / "traceback.txt").read_text()
    assert found["wrong-shape"]["error"]["traceback_file"] == "traceback.txt"


def test_a_worker_that_hangs_is_killed(tmp_path: Path) -> None:
    stop = Cancellation()
    job = next_progress(tmp_path, stop)
    record = data_of(swept(tmp_path, "hangs", Rules(), stop))[0]
    job.join()
    assert record["status"] == "preempted"
    assert "did not stop by itself and was killed" in record["error"]["message"]
    log = next((tmp_path / "smoke" / "cells").glob("*/attempt-1/log.txt")).read_text()
    assert "in harm" in log, "the stack of the hanging worker is not in its log"


def test_a_worker_whose_signals_a_library_took_is_asked_again(tmp_path: Path) -> None:
    stop = Cancellation()
    job = next_progress(tmp_path, stop)
    record = data_of(swept(tmp_path, "takes", Rules(), stop, grace=20.0))[0]
    job.join()
    assert record["status"] == "preempted"
    assert "goes on from its last step" in record["error"]["message"]


def test_a_time_limit(tmp_path: Path) -> None:
    record = data_of(swept(tmp_path, "slow", Rules(time_limit=0.5), grace=60.0))[0]
    assert record["status"] == "timeout"
    # The limit fell into the loading of libraries: nothing was begun, and nothing is lost.
    assert "the time limit of 0.5 s was reached; it kept no state" in record["error"]["message"]


def test_a_stop_keeps_the_state_and_the_next_run_goes_on(tmp_path: Path) -> None:
    stop = Cancellation()
    job = next_progress(tmp_path, stop)
    summary = swept(tmp_path, "slow,noise", Rules(), stop)
    job.join()
    assert summary.missing == 2
    assert [record["status"] for record in data_of(summary)] == ["preempted"]
    assert "goes on from its last step" in data_of(summary)[0]["error"]["message"]
    assert list((tmp_path / "smoke" / "cells").glob("*/checkpoints/checkpoint-*"))
    again = swept(tmp_path, "slow,noise")
    assert again.missing == 0
    assert {record["status"] for record in data_of(again)} <= {"ok", "collapsed"}
    slow = next(record for record in data_of(again) if record["method"] == "slow")
    assert (slow["attempt"], slow["resumed"]) == (2, 1)
    assert slow["seconds"]["synthesis"] >= 6.0
    parts = ("setup", "paid_synthesis", "quantization", "evaluation", "unattributed")
    assert sum(slow["seconds"][part] for part in parts) == pytest.approx(slow["seconds"]["wall"], abs=1e-6)
    assert not list((tmp_path / "smoke" / "cells").glob("*/checkpoints"))
    assert data_of(again)[0]["environment"] == data_of(again)[1]["environment"]


def next_progress(out: Path, stop: Cancellation) -> threading.Thread:
    """Asks to stop when the first worker has written that it began its steps."""

    def look() -> None:
        # The plugin's folder is made just before its code runs.
        while not list(out.glob("smoke/cells/*/attempt-1/work")):
            time.sleep(0.05)
        time.sleep(1.0)
        stop.request("signal")

    thread = threading.Thread(target=look)
    thread.start()
    return thread


def test_failures_can_end_a_run(tmp_path: Path) -> None:
    summary = swept(tmp_path, "exits,raises,noise", Rules(max_failures=1))
    assert [record["method"] for record in data_of(summary)] == ["exits"]
    assert summary.missing == 2


def test_several_jobs_give_what_one_gives_and_pay_a_source_once(tmp_path: Path) -> None:
    bits = ("w4a4", "w3a3")
    one = swept(tmp_path / "one", "zeroq,noise", None, None, *bits)
    two = swept(tmp_path / "two", "zeroq,noise", None, None, *bits, jobs=2)
    for first, second in zip(data_of(one), data_of(two), strict=True):
        for key in ("cell_id", "status", "top1", "correct", "counts", "fp_top1", "reused_from"):
            if key != "reused_from" or first["method"] != "zeroq":
                assert first[key] == second[key]
    paid = [record for record in data_of(two) if record["method"] == "zeroq" and record["reused_from"] is None]
    assert len(paid) == 1
    description = json.loads(next((tmp_path / "two" / "smoke" / "environments").glob("*.json")).read_text())
    assert "PyTorch version" in description["torch"]["collect_env"]
    assert description["installed"]["torch"]
    assert description["deterministic"].startswith("yes")


def test_fresh_runs_everything_again(tmp_path: Path) -> None:
    first = swept(tmp_path, "zeroq")
    again = swept(tmp_path, "zeroq", Rules(fresh=True))
    assert (data_of(first)[0]["attempt"], data_of(again)[0]["attempt"]) == (1, 2)
    assert data_of(again)[0]["reused_from"] is None
    assert data_of(again)[0]["correct"] == data_of(first)[0]["correct"]
    assert swept(tmp_path, "zeroq", Rules(retry=RETRIES["all"])).reused == 1


def test_inline_runs_here_and_says_so(tmp_path: Path) -> None:
    apart = data_of(swept(tmp_path / "apart", "zeroq"))[0]
    here = data_of(swept(tmp_path / "here", "zeroq", executor="inline"))[0]
    assert here["flags"] == [*apart["flags"], "inline"]
    assert here["correct"] == apart["correct"]
