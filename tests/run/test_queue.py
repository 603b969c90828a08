from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from dfqbench.run.execute.cancellation import Cancellation
from dfqbench.run.execute.events import SourceReady
from dfqbench.run.execute.job import Job, OnEvent, Outcome
from dfqbench.run.store.files import write_json
from dfqbench.run.store.lease import Leases
from dfqbench.run.store.run_folder import RunFolder
from dfqbench.run.store.source_cache import DESCRIPTION
from dfqbench.run.store.status import MEASURED
from pretend import Executor, done, plan_of, schedule

HOLD = """
import sys, time
from pathlib import Path
from dfqbench.run.store.lease import Leases
lock = Leases(Path(sys.argv[1])).take("cell-aa11")
assert lock is not None
print("held", flush=True)
time.sleep(600)
"""


def test_killed_process_releases_its_lease(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"held\n"
            assert Leases(tmp_path).take("cell-aa11") is None
            other = Leases(tmp_path).take("cell-bb22")
            assert other is not None
            other.release()
        finally:
            holder.kill()
    again = Leases(tmp_path).take("cell-aa11")
    assert again is not None
    assert Leases(tmp_path).take("cell-aa11") is None, "one process must exclude itself too"
    again.release()


@pytest.mark.parametrize("shared", [True, False])
def test_cell_waits_for_a_source_that_another_cell_makes(shared: bool, tmp_path: Path) -> None:
    noise_ran = threading.Event()

    def work(job: Job, on_event: OnEvent, _: Cancellation) -> Outcome:
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
    summary = schedule(tmp_path, plan_of("zeroq,noise", "w4a4,w3a3"), executor)
    assert {record.status for record in summary.records} <= MEASURED
    assert len(executor.order) == 4


def test_results_of_another_run_are_taken_over(tmp_path: Path) -> None:
    plan = plan_of("noise", "w4a4,w3a3")
    began, go_on = threading.Event(), threading.Event()

    def slow(*_: Any) -> Outcome:
        began.set()
        assert go_on.wait(60)
        return done()

    first, second = Executor(slow, slots=1), Executor(lambda *_: done())
    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(schedule, tmp_path, plan, first)]
        assert began.wait(60)
        runs.append(pool.submit(schedule, tmp_path, plan, second))
        # The second run waits for the cell that the first one has leased.
        with pytest.raises(TimeoutError):
            runs[1].result(2.0)
        go_on.set()
        summaries = [run.result(60) for run in runs]
    assert sorted(first.order + second.order) == ["noise 3", "noise 4"]
    assert [len(summary.records) for summary in summaries] == [2, 2]
    assert len(list(tmp_path.glob("cells/*/attempt-*"))) == 2


def test_cancelled_run_leaves_the_rest_for_later(tmp_path: Path) -> None:
    def work(_job: Job, _on_event: OnEvent, cancellation: Cancellation) -> Outcome:
        cancellation.request("signal")
        return Outcome("preempted", error={"type": "Preempted", "message": "the run was stopped", "phase": None})

    executor = Executor(work, slots=1)
    summary = schedule(tmp_path, plan_of("noise", "w4a4,w3a3"), executor)
    assert (len(executor.order), summary.missing, summary.failed) == (1, 2, [])
    assert [record.status for record in summary.records] == ["preempted"]


def test_full_disk_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(RunFolder, "write_record", full)
    with pytest.raises(OSError, match="No space left"):
        schedule(tmp_path, plan_of("noise", "w4a4,w3a3"), Executor(lambda *_: done()))
