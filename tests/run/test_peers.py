from __future__ import annotations

import json
import os
import socket
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from dfqbench.plugins import load_plugins
from dfqbench.run.cluster.peers import SILENT, Peer, PeerLog, job_id, read_peers
from dfqbench.run.cluster.slurm import end_of_walltime
from dfqbench.run.cluster.submission import submitted_at
from dfqbench.run.execute.cancellation import Cancellation
from dfqbench.run.execute.events import Phase, PhaseStarted, Progress, SharedJob, Sharing
from dfqbench.run.execute.job import Job, OnEvent, Outcome
from dfqbench.run.schedule.run import Options, run_plan
from dfqbench.run.schedule.run_environment import Rules
from pretend import Executor, done, plan_of, schedule


@pytest.fixture(autouse=True)
def _no_batch_job(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)


def peer(**changes: Any) -> Peer:
    return replace(Peer("alive", time.time(), socket.gethostname(), os.getpid()), **changes)


def test_log_holds_the_state_of_the_work(tmp_path: Path) -> None:
    with PeerLog(tmp_path, 2, 50.0) as log:
        (state,) = read_peers(tmp_path)
        assert (state.event, state.host, state.pid, state.slots, state.left) == (
            *("began", socket.gethostname(), os.getpid()),
            *(2, 50.0),
        )
        log.begin("a", "zeroq w4a4")
        log.begin("b", "noise w4a4")
        log.event("b", SharedJob(Sharing.ONE_LOOP, 2))
        log.event("a", Progress(Phase.SYNTHESIS, 3, 4, {}))
        log.event("b", PhaseStarted(Phase.QUANTIZATION))
        (state,) = read_peers(tmp_path)
        assert [(work.label, work.phase, work.step, work.total) for work in state.cells] == [
            ("zeroq w4a4", "synthesis", 3, 4),
            ("noise w4a4 and 2 more", "quantization", 0, 0),
        ]
        log.end("a")
        log.record("ok zeroq w4a4", 10.0)
        (state,) = read_peers(tmp_path)
        assert (state.message, state.left, len(state.cells)) == ("ok zeroq w4a4", 20.0, 1)
    (state,) = read_peers(tmp_path)
    assert (state.event, state.cells) == ("ended", ())


def test_progress_is_written_after_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dfqbench.run.cluster.peers.BEAT", 0.01)
    with PeerLog(tmp_path, 1, None) as log:
        log.begin("a", "zeroq")
        log.event("a", Progress(Phase.SYNTHESIS, 3, 4, {}))
        end = time.monotonic() + 30
        while read_peers(tmp_path)[0].cells[0].step != 3:
            assert time.monotonic() < end
            time.sleep(0.01)
    assert threading.active_count() < 20


def test_partial_last_line_waits(tmp_path: Path) -> None:
    file = tmp_path / "peers" / "a.jsonl"
    with PeerLog(tmp_path, 1, None) as log:
        log.begin("a", "zeroq")
    (file,) = (tmp_path / "peers").iterdir()
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(lines[0] + lines[1][:-5])
    assert [state.event for state in read_peers(tmp_path)] == ["began"]
    # A process with the same number goes on in a line of its own.
    with PeerLog(tmp_path, 1, None):
        assert [state.event for state in read_peers(tmp_path)] == ["began"]
    events = [json.loads(line)["event"] for line in file.read_bytes().splitlines() if line.endswith(b"}")]
    assert events == ["began", "began", "ended"]


@pytest.mark.parametrize("content", [b"", b"{", b"\n\n", b'{"event": 5}\n', b"\xff\xfe\n"])
def test_damaged_files_of_peers_are_left_out(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "peers").mkdir()
    (tmp_path / "peers" / "a.jsonl").write_bytes(content)
    assert read_peers(tmp_path) == []


def test_folder_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "peers").write_text("")
    with PeerLog(tmp_path, 1, None) as log:
        log.begin("a", "zeroq")
    assert read_peers(tmp_path) == []


def test_peer_is_alive_while_its_process_and_its_job_are() -> None:
    now = time.time()
    assert peer().is_alive(now, None)
    assert not peer(event="ended").is_alive(now, None)
    assert not peer(pid=2**22 + 1).is_alive(now, None)
    assert peer(host="far", pid=2**22 + 1).is_alive(now, None)
    assert not peer(host="far", time=now - SILENT - 1).is_alive(now, None)
    assert peer(job="7_1").is_alive(now, {"7_1": None})
    assert not peer(job="7_1").is_alive(now, {"7_0": None})


def test_elements_of_an_array_have_files_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert job_id({}) == ""
    assert job_id({"SLURM_JOB_ID": "9"}) == "9"
    monkeypatch.setenv("SLURM_JOB_ID", "9")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "7")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    with PeerLog(tmp_path, 1, None):
        assert (tmp_path / "peers" / "7_3.jsonl").is_file()
        assert read_peers(tmp_path)[0].job == "7_3"


def test_run_writes_plan_and_events_before_its_first_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def work(job: Job, on_event: OnEvent, cancellation: Cancellation) -> Outcome:
        on_event(PhaseStarted(Phase.SYNTHESIS))
        planned = json.loads((tmp_path / "smoke" / "plan.json").read_text())
        seen.append((len(planned["cells"]), read_peers(tmp_path / "smoke")[0]))
        return done()

    monkeypatch.setattr("dfqbench.run.schedule.run._executor", lambda *_: (Executor(work, slots=1), ""))
    run_plan(plan_of("noise", "w4a4,w3a3"), load_plugins(), Options(tmp_path, None, "cpu"), Console(quiet=True))
    assert [cells for cells, _ in seen] == [2, 2]
    (work_seen,) = seen[0][1].cells
    assert work_seen.label.startswith("noise digits/")
    assert work_seen.phase == "synthesis"
    assert read_peers(tmp_path / "smoke")[0].event == "ended"


@pytest.mark.parametrize("in_process", [False, True])
def test_no_cell_is_begun_near_the_end_of_the_walltime(in_process: bool, tmp_path: Path) -> None:
    times = iter((time.time() + 1000, time.time() - 1))
    executor, cancellation = Executor(lambda *_: done(), slots=2), Cancellation()
    executor.in_process = in_process
    plan = plan_of("noise", "w4a4,w3a3")
    summary = schedule(tmp_path, plan, executor, cancellation, Rules(last_begin=time.time() - 1))
    assert (cancellation.reason, summary.missing, executor.jobs) == ("walltime", 2, [])
    cancellation = Cancellation()
    summary = schedule(tmp_path, plan, executor, cancellation, Rules(last_begin=next(times)))
    assert (cancellation.reason, summary.missing, len(executor.jobs)) == (None, 0, 2)
    # With every cell finished nothing is left that could be begun.
    summary = schedule(tmp_path, plan, executor, cancellation, Rules(last_begin=next(times)))
    assert (cancellation.reason, summary.reused) == (None, 2)


def test_end_of_the_walltime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert end_of_walltime({}) == float("inf")
    assert end_of_walltime({"SLURM_JOB_ID": "3", "SLURM_JOB_END_TIME": "1700000000"}) == 1700000000.0
    squeue = tmp_path / "squeue"
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for answer, expected in (("1:00:00", time.time() + 3600), ("UNLIMITED", float("inf")), ("INVALID", float("inf"))):
        squeue.write_text(f"#!/bin/sh\necho {answer}\n")
        squeue.chmod(0o755)
        assert end_of_walltime({"SLURM_JOB_ID": "3"}) == pytest.approx(expected, abs=60)


def test_failures_count_since_the_job_was_submitted(tmp_path: Path) -> None:
    assert submitted_at(tmp_path, "12_0") == ""
    (tmp_path / "slurm").mkdir()
    file = tmp_path / "slurm" / "submission.json"
    jobs = [{"id": "12;north", "submitted_at": "2026-01-01"}, {"id": "13", "submitted_at": "2026-01-02"}]
    file.write_text(json.dumps({"what": {}, "jobs": jobs}))
    times = [submitted_at(tmp_path, job) for job in ("12_0", "12_31", "13", "14_0", "1", "")]
    assert times == ["2026-01-01", "2026-01-01", "2026-01-02", "", "", ""]
    file.write_text("{")
    assert submitted_at(tmp_path, "12_0") == ""
