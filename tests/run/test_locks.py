"""Sharing work: locks that fall with their process, and cells that wait for a source."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from dfqbench.run.execute.cancellation import Cancellation
from dfqbench.run.execute.events import SourceReady
from dfqbench.run.execute.job import Job, OnEvent, Outcome
from dfqbench.run.schedule.queue import try_lock
from dfqbench.run.schedule.scheduler import Summary
from dfqbench.run.store.files import write_json
from dfqbench.run.store.run_folder import RunFolder
from dfqbench.run.store.source_description import DESCRIPTION
from dfqbench.run.store.status import MEASURED
from pretend import Executor, at_once, done, plan_of, swept

HOLD = """
import sys, time
from pathlib import Path
from dfqbench.run.schedule.queue import try_lock
lock = try_lock(Path(sys.argv[1]), "cell-aa11")
assert lock is not None
print("held", flush=True)
time.sleep(600)
"""


def test_the_lock_of_a_killed_process_falls(tmp_path: Path) -> None:
    locks = tmp_path / "locks"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "locks")], stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"held\n"
            assert try_lock(locks, "cell-aa11") is None
            other = try_lock(locks, "cell-bb22")
            assert other is not None
            other.release()
        finally:
            holder.kill()
    again = try_lock(locks, "cell-aa11")
    assert again is not None
    assert try_lock(locks, "cell-aa11") is None, "one process must exclude itself too"
    again.release()


@pytest.mark.parametrize("shared", [True, False])
def test_a_cell_waits_for_a_source_that_another_one_makes(shared: bool, tmp_path: Path) -> None:
    noise_ran = threading.Event()

    def work(job: Job, on_event: OnEvent, stop: Cancellation) -> Outcome:
        if job.method == "noise":
            noise_ran.set()
        elif not executor.order.count("zeroq 3"):
            # The first of the two: the second must not have begun, while the other method goes on.
            assert noise_ran.wait(60)
            assert "zeroq 3" not in executor.order
            if shared:
                Path(job.source).mkdir(parents=True)
                facts = {"class": "x:y", "environment": job.environment, "cost": {"seconds": 1.0}}
                write_json(Path(job.source) / DESCRIPTION, facts)
            on_event(SourceReady(shared))
        return done()

    executor = Executor(work)
    plan = plan_of("zeroq,noise", "w4a4,w3a3")
    summary = swept(tmp_path / "run", plan, executor)
    assert {record.status for record in summary.records} <= MEASURED
    assert len(executor.order) == 4


def test_what_another_run_finishes_meanwhile_is_taken_over(tmp_path: Path) -> None:
    plan = plan_of("noise", "w4a4,w3a3")
    began, go_on = threading.Event(), threading.Event()

    def slow(job: Job, on_event: OnEvent, stop: Cancellation) -> Outcome:
        began.set()
        assert go_on.wait(60)
        return done()

    first, second = Executor(slow), Executor(at_once)
    first.slots = first.slots[:1]
    found: list[Summary] = []
    thread = threading.Thread(target=lambda: found.append(swept(tmp_path / "run", plan, first)))
    thread.start()
    assert began.wait(60)
    other = threading.Thread(target=lambda: found.append(swept(tmp_path / "run", plan, second)))
    other.start()
    other.join(2.0)
    assert other.is_alive(), "the second run must wait for the cell that the first one has in hand"
    go_on.set()
    thread.join(60)
    other.join(60)
    assert sorted(first.order + second.order) == ["noise 3", "noise 4"]
    assert [len(summary.records) for summary in found] == [2, 2]
    assert len(list((tmp_path / "run").glob("cells/*/attempt-*"))) == 2


def test_a_stop_leaves_the_rest_for_later(tmp_path: Path) -> None:
    stop = Cancellation()

    def work(job: Job, on_event: OnEvent, stop: Cancellation) -> Outcome:
        stop.request("signal")
        return Outcome("preempted", error={"type": "Preempted", "message": "the run was stopped", "phase": None})

    executor = Executor(work)
    executor.slots = executor.slots[:1]
    summary = swept(tmp_path / "run", plan_of("noise", "w4a4,w3a3"), executor, stop)
    assert (len(executor.order), summary.missing, summary.failed) == (1, 2, [])
    assert [record.status for record in summary.records] == ["preempted"]


def test_a_disk_that_fills_up_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: RunFolder, attempt: Path, record: Mapping[str, Any]) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(RunFolder, "write_record", full)
    with pytest.raises(OSError, match="No space left"):
        swept(tmp_path / "run", plan_of("noise", "w4a4,w3a3"), Executor(at_once))
