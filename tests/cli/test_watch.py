from __future__ import annotations

import json
import os
import socket
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from tests.cli.calls import Call, write_record
from tests.cli.fake_slurm import FakeSlurm

from dfqbench.run.cluster.overview import Watcher
from dfqbench.run.cluster.peers import Peer, Underway
from dfqbench.run.store.run_folder import RunFolder

RUNS = Path("results/runs")


def plan(*cells: str, run: str = "mine") -> None:
    (RUNS / run).mkdir(parents=True, exist_ok=True)
    (RUNS / run / "plan.json").write_text(json.dumps({"cells": cells}))


def write_peer(name: str, run: str = "mine", **changes: Any) -> None:
    state: dict[str, Any] = {"event": "alive", "time": time.time(), "host": socket.gethostname(), "pid": os.getpid()}
    (RUNS / run / "peers").mkdir(parents=True, exist_ok=True)
    (RUNS / run / "peers" / f"{name}.jsonl").write_text(json.dumps(asdict(Peer(**state | changes))) + "\n")


def test_state_of_a_local_run(call: Call) -> None:
    plan("a1", "a2", "a3", "a4", "a5")
    write_record(RUNS, "mine", "a1")
    error = {"type": "ValueError", "message": "loss\x1b[31m\nis NaN"}
    write_record(RUNS, "mine", "a2", status="failed", top1=None, error=error)
    write_record(RUNS, "mine", "a3", status="preempted", top1=None)
    write_record(RUNS, "mine", "other")
    work = Underway("zeroq w4a4 seed 0", time.time() - 30, "synthesis", 3, 4)
    write_peer("a", slots=2, left=7200.0, cells=(work,))
    write_peer("b", host="far", slots=2)
    write_peer("c", pid=2**22 + 1, time=0.0)
    write_peer("d", event="ended")
    output = call("watch", "mine", "--once")
    here = socket.gethostname()
    assert output.status == 0, output
    lines = output.out.splitlines()
    assert lines[0] == "run mine: 2 of 5 cells done (1 ok, 1 failed, 1 preempted); about 30 min left"
    assert lines[1] == "2 peers work:"
    assert lines[2].startswith(f"  {here} process {os.getpid()}: zeroq w4a4 seed 0: synthesis 75 %, 3")
    assert lines[3] == f"  far process {os.getpid()}: between cells"
    assert lines[4].startswith(f"  {here} process {2**22 + 1} is gone; last sign at 1970")
    assert lines[5:7] == ["failed:", "  None digits/digits:resnet8 w4a4@gdfq seed 0: failed: loss [31m is NaN"]


def test_newest_attempt_counts(call: Call) -> None:
    plan("a1")
    folder = write_record(RUNS, "mine", "a1", status="failed", top1=None)
    watcher = Watcher(RunFolder(RUNS / "mine"))
    assert (watcher.look().done, len(watcher.look().failed)) == (1, 1)
    record = json.loads((folder / "record.json").read_text())
    for number in range(2, 12):
        again = folder.with_name(f"attempt-{number}")
        again.mkdir()
        (again / "record.json").write_text(json.dumps(record | {"status": "ok" if number == 11 else "failed"}))
    assert call("watch", "mine", "--once").out.splitlines()[0].startswith("run mine: 1 of 1 cells done (1 ok)")
    # Under way again: the record before counts.
    folder.with_name("attempt-12").mkdir()
    assert "(1 ok)" in call("watch", "mine", "--once").out


def test_end_without_a_living_peer_says_so(call: Call) -> None:
    plan("a1", "a2")
    write_record(RUNS, "mine", "a1")
    write_peer("a", pid=2**22 + 1)
    output = call("watch", "mine")
    assert output.status == 1
    assert "no peer is alive: the same command goes on from here" in output.out
    write_record(RUNS, "mine", "a2")
    output = call("watch", "mine")
    assert (output.status, output.out.splitlines()[:2]) == (0, ["run mine: 2 of 2 cells done (2 ok)", "complete"])


def test_watch_follows_until_the_last_peer_has_left(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    plan("a1", "a2")
    write_peer("a")
    steps = iter([lambda: write_record(RUNS, "mine", "a1"), lambda: write_record(RUNS, "mine", "a2")])

    def wait(_: float) -> None:
        step = next(steps, None)
        if step is None:
            write_peer("a", event="ended")
        else:
            step()

    monkeypatch.setattr("dfqbench.cli.watch.time.sleep", wait)
    output = call("watch", "mine")
    assert output.status == 0
    assert [line.split(" cells")[0] for line in output.out.splitlines() if line.startswith("run")] == [
        *("run mine: 0 of 2", "run mine: 1 of 2", "run mine: 2 of 2"),
        "run mine: 2 of 2",
    ]


def test_ctrl_c_leaves_the_run_alone(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    plan("a1")
    write_peer("a")

    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dfqbench.cli.watch.time.sleep", interrupt)
    output = call("watch", "mine")
    assert (output.status, output.err) == (0, "left; the run goes on, and so does: dfqbench watch mine\n")


def test_jobs_of_slurm(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slurm = FakeSlurm(tmp_path / "bin", monkeypatch)
    (RUNS / "mine" / "slurm").mkdir(parents=True)
    submission = {"what": {}, "jobs": [{"id": "7", "cells": 9}]}
    (RUNS / "mine" / "slurm" / "submission.json").write_text(json.dumps(submission))
    slurm.command("squeue", "7_0|RUNNING|None\n7_4|RUNNING|None\n7_1|PENDING|Resources\n7_2|PENDING|Resources\n")
    write_peer("7_0", job="7_0", host="node1", cells=(Underway("zeroq", time.time()),))
    write_peer("7_3", job="7_3", host="node2")
    lines = call("watch", "mine", "--once").out.splitlines()
    starting = "queue: 1 RUNNING, without a sign yet"
    assert lines[:3] == ["run mine: 0 of 9 cells done", "queue: 2 PENDING, Resources", starting]
    assert lines[3] == "1 peer works:"
    assert lines[4].startswith("  node1 job 7_0: zeroq: setup, ")
    assert lines[5].startswith("  node2 job 7_3 is gone; last sign at ")
    # Once the controller does not answer, what peers write is what there is.
    slurm.command("squeue", error="slurm_load_jobs error: Unable to contact slurm controller", status=1)
    lines = call("watch", "mine", "--once").out.splitlines()
    assert lines[1].startswith("SLURM's queue is not known: squeue refused: ")
    assert lines[2] == "2 peers work:"


def test_submitted_run_that_never_began(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FakeSlurm(tmp_path / "bin", monkeypatch).command("squeue", error="error: Invalid job id specified", status=1)
    (RUNS / "mine" / "slurm").mkdir(parents=True)
    (RUNS / "mine" / "slurm" / "submission.json").write_text(json.dumps({"jobs": [{"id": "7", "cells": 9}]}))
    output = call("watch", "mine")
    assert output.status == 1
    assert "no job has begun its work" in output.out
    assert "dfqbench submit --probe" in output.out


def test_damaged_submission_and_unknown_run_are_refused(call: Call) -> None:
    (RUNS / "mine" / "slurm").mkdir(parents=True)
    (RUNS / "mine" / "slurm" / "submission.json").write_text("{")
    output = call("watch", "mine", "--once")
    assert (output.status, output.out) == (2, "")
    assert "submission.json cannot be read" in output.err
    write_record(RUNS, "other", "a1")
    output = call("watch", "othr", "--once")
    assert output.status == 2
    assert "other" in output.err


@pytest.mark.slow
def test_ten_thousand_records_are_looked_at_in_two_seconds(call: Call) -> None:
    cells = [f"{number:016x}" for number in range(10_000)]
    text = (write_record(RUNS, "mine", cells[0]) / "record.json").read_text()
    padded = json.dumps(json.loads(text) | {"warnings": ["x" * 100] * 40})
    for cell in cells[1:]:
        folder = RUNS / "mine" / "cells" / cell / "attempt-1"
        folder.mkdir(parents=True)
        (folder / "record.json").write_text(padded)
    plan(*cells)
    write_peer("a")
    watcher = Watcher(RunFolder(RUNS / "mine"))
    for most in (2.0, 0.5):
        # Seconds of this process: others may use the machine, too.
        begin = time.process_time()
        assert watcher.look().done == 10_000
        assert time.process_time() - begin <= most
