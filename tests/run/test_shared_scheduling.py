from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from attempts import PLUGINS, SMALL, data_of
from dfqbench.run.execute.cancellation import Cancellation
from dfqbench.run.execute.events import SharedJob, Sharing, SourceReady
from dfqbench.run.execute.job import Job, OnEvent, Outcome
from dfqbench.run.plan.estimate import History
from dfqbench.run.schedule.run_environment import Rules
from dfqbench.run.schedule.scheduler import Summary
from pretend import Executor, assert_parts_sum_to_wall_time, done, plan_of, run_smoke, schedule

pytestmark = pytest.mark.timeout(900)
BITS = "w4a4,w3a3,w2a2"
PREEMPTED = {"type": "Preempted", "message": "stopped", "phase": None}


def widths(job: Job) -> list[int]:
    return [job.scheme["w_bits"], *(member.scheme["w_bits"] for member in job.members)]


class SharingWorker(Executor):
    """Runs all members of its jobs; keeps the widths of each job."""

    def __init__(self, ended: list[Outcome | None] | None = None, first: Outcome | None = None, slots: int = 1) -> None:
        super().__init__(self._share, slots)
        self.widths: list[list[int]] = []
        self._ended = ended
        self._first = first

    def _share(self, job: Job, on_event: OnEvent, _stop: Cancellation) -> Outcome:
        self.widths.append(widths(job))
        on_event(SourceReady(shared=False))
        on_event(SharedJob(Sharing.ONE_LOOP if job.members else Sharing.ALONE, 0))
        outcome = self._first if job.members and self._first is not None else done()
        outcome.members = (self._ended or [done() for _ in job.members]) if job.members else []
        return outcome


def attempts(folder: Path) -> set[int]:
    return {len(list(cell.glob("attempt-*"))) for cell in (folder / "cells").iterdir()}


@pytest.mark.parametrize(
    ("methods", "slots", "rules", "expected"),
    [
        ("gdfq", 1, Rules(), [[4, 3, 2]]),
        ("gdfq,noise", 1, Rules(), [[4, 3, 2], [4, 3, 2]]),
        # No slot is left idle.
        ("gdfq", 2, Rules(), [[2], [4, 3]]),
        ("gdfq", 1, Rules(separate=True), [[4], [3], [2]]),
        ("gdfq", 1, Rules(time_limit=600.0), [[4], [3], [2]]),
    ],
)
def test_cells_of_one_source_share_a_worker(
    methods: str, slots: int, rules: Rules, expected: list[list[int]], tmp_path: Path
) -> None:
    executor = SharingWorker(slots=slots)
    summary = schedule(tmp_path, plan_of(methods, BITS), executor, rules=rules)
    assert (executor.widths if slots == 1 else sorted(executor.widths)) == expected
    shared = [len(cells) - 1 for cells in executor.widths for _ in cells]
    assert sorted(len(record["together_with"]) for record in data_of(summary)) == sorted(shared)
    assert attempts(tmp_path) == {1}


def test_members_that_a_worker_declines_wait_again_at_once(tmp_path: Path) -> None:
    second = threading.Event()
    given: list[list[int]] = []

    def work(job: Job, on_event: OnEvent, stop: Cancellation) -> Outcome:
        given.append(widths(job))
        on_event(SourceReady(shared=False))
        on_event(SharedJob(Sharing.ALONE, len(job.members)))
        if len(given) > 1:
            second.set()
        # The other slot takes what was declined while this job is still at work.
        assert second.wait(60)
        return done()

    summary = schedule(tmp_path, plan_of("gdfq", BITS), Executor(work))
    assert sorted(given) == [[2], [3], [4, 3]]
    assert [record["together_with"] for record in data_of(summary)] == [[]] * 3
    assert attempts(tmp_path) == {1}


def test_source_that_fails_early_was_shared_with_none(tmp_path: Path) -> None:
    failed = Outcome("failed", error={"type": "ValueError", "message": "no", "phase": "synthesis"})
    summary = schedule(
        tmp_path, plan_of("gdfq", BITS), Executor(lambda job, *_: replace(failed, members=[None for _ in job.members]))
    )
    assert [(record["status"], record["together_with"]) for record in data_of(summary)] == [("failed", [])] * 3


def test_member_without_an_outcome_runs_by_itself(tmp_path: Path) -> None:
    executor = SharingWorker([None, done()])
    summary = schedule(tmp_path, plan_of("gdfq", BITS), executor)
    assert executor.widths == [[4, 3, 2], [3]]
    assert [len(record["together_with"]) for record in data_of(summary)] == [2, 0, 2]
    assert attempts(tmp_path) == {1}


@pytest.mark.parametrize("status", ["failed", "oom"])
def test_each_cell_of_a_dead_worker_runs_in_a_worker_of_its_own(status: str, tmp_path: Path) -> None:
    died = Outcome(status, error={"type": "WorkerDied", "message": "killed", "phase": None}, died=True)
    executor = SharingWorker([done(), None], died)
    summary = schedule(tmp_path, plan_of("gdfq", BITS), executor)
    assert executor.widths == [[4, 3, 2], [4], [3], [2]]
    assert [record["together_with"] for record in data_of(summary)] == [[]] * 3
    assert summary.failed == []
    assert attempts(tmp_path) == {1}


def test_stop_preempts_all_members(tmp_path: Path) -> None:
    stop = Cancellation()

    def work(job: Job, on_event: OnEvent, stop: Cancellation) -> Outcome:
        on_event(SharedJob(Sharing.ONE_LOOP, 2))
        stop.request("signal")
        return Outcome("preempted", error=PREEMPTED, members=[Outcome("preempted", error=PREEMPTED)])

    summary = schedule(tmp_path, plan_of("gdfq", BITS), Executor(work, slots=1), stop)
    assert [record["status"] for record in data_of(summary)] == ["preempted", "preempted"]
    assert summary.missing == 3


def by_bits(summary: Summary) -> dict[str, dict[str, Any]]:
    return {record["scheme"]["label"].partition("@")[0]: record for record in data_of(summary)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "message", "others"),
    [("dies", "was killed by SIGABRT", 0), ("exits", "plugin code ended the process with status 5", 1)],
)
def test_real_worker_that_ends_fails_one_member_only(how: str, message: str, others: int, tmp_path: Path) -> None:
    settings = ("fragile.bits=3", f"fragile.how={how}")
    found = by_bits(
        run_smoke(tmp_path, "feeds", bits="w4a4,w3a3", settings=settings, plugin_files=[PLUGINS / "common.py"])
    )
    assert {bits: record["status"] == "failed" for bits, record in found.items()} == {"w4a4": False, "w3a3": True}
    assert message in found["w3a3"]["error"]["message"]
    assert [len(record["together_with"]) for record in found.values()] == [others] * 2
    assert attempts(tmp_path / "smoke") == {1}


@pytest.mark.slow
def test_shared_run_has_the_results_of_separate_workers_and_states_the_cost(tmp_path: Path) -> None:
    summary = run_smoke(tmp_path / "one", "gdfq", bits=BITS, settings=SMALL)
    rules = Rules(separate=True)
    separate = by_bits(run_smoke(tmp_path / "two", "gdfq", bits=BITS, settings=SMALL, executor="inline", rules=rules))
    found = by_bits(summary)
    first, *others = found.values()
    cells = {record["cell_id"] for record in found.values()}
    for record in found.values():
        assert set(record["together_with"]) == cells - {record["cell_id"]}
        seconds = record["seconds"]
        assert_parts_sum_to_wall_time(seconds)
        assert 0 <= seconds["unattributed"] < 0.2 * first["seconds"]["wall"] + 1.0
    assert first["reused_from"] is None
    for record in others:
        assert record["reused_from"] == record["source_id"]
        assert record["seconds"]["paid_synthesis"] < 0.1 * first["seconds"]["paid_synthesis"] + 0.1
        assert record["seconds"]["synthesis"] == pytest.approx(first["seconds"]["synthesis"], rel=0.2, abs=0.1)
    same_numbers = ("cell_id", "top1", "top5", "agreement", "correct", "counts", "coverage", "source_kind")
    for bits in found:
        assert separate[bits]["together_with"] == []
        assert {key: separate[bits][key] for key in same_numbers} == {key: found[bits][key] for key in same_numbers}
    # The wall time of all members is about the estimate of the next run.
    whole = sum(record["seconds"]["wall"] for record in found.values())
    estimate = History(summary.records).estimate(plan_of("gdfq", BITS, seeds="1", settings=SMALL).cells, "cpu", {})
    assert whole * 0.3 < estimate.seconds < whole * 1.2
