"""Sweeps whose workers take several cells of one source along."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from attempts import PLUGINS, data_of
from dfqbench.grid import apply, load_grid, parse_selection
from dfqbench.plugins import load_plugins
from dfqbench.run.execute.cancellation import Cancellation
from dfqbench.run.execute.events import SharedJob, Sharing, SourceReady
from dfqbench.run.execute.job import Job, OnEvent, Outcome
from dfqbench.run.plan.estimate import History
from dfqbench.run.plan.plan import build_plan
from dfqbench.run.schedule.run import Options, run_plan
from dfqbench.run.schedule.run_environment import Rules
from dfqbench.run.schedule.scheduler import Summary
from dfqbench.targets.catalogue import Catalogue
from pretend import Executor, done, plan_of, schedule

pytestmark = pytest.mark.timeout(900)
BITS = ("w4a4", "w3a3", "w2a2")
SMALL = ("distill.batch_few_classes=16", "calibrate.images=32")
PREEMPTED = {"type": "Preempted", "message": "stopped", "phase": None}


def widths(job: Job) -> list[int]:
    return [job.scheme["w_bits"], *(member.scheme["w_bits"] for member in job.members)]


class Together:
    """What a worker does that takes its partners along; keeps the groups that it was given."""

    def __init__(self, ended: list[Outcome | None] | None = None, first: Outcome | None = None) -> None:
        self.groups: list[list[int]] = []
        self._ended = ended
        self._first = first

    def __call__(self, job: Job, on_event: OnEvent, _stop: Cancellation) -> Outcome:
        self.groups.append(widths(job))
        on_event(SourceReady(shared=False))
        on_event(SharedJob(Sharing.ONE_LOOP if job.members else Sharing.ALONE, 0))
        outcome = self._first if job.members and self._first is not None else done()
        outcome.members = (self._ended or [done() for _ in job.members]) if job.members else []
        return outcome


def one_slot(work: Any) -> Executor:
    executor = Executor(work)
    executor.slots = executor.slots[:1]
    return executor


def attempts(folder: Path) -> set[int]:
    return {len(list(cell.glob("attempt-*"))) for cell in (folder / "cells").iterdir()}


def test_cells_of_one_source_go_together(tmp_path: Path) -> None:
    work = Together()
    summary = schedule(tmp_path / "run", plan_of("gdfq,noise", "w4a4,w3a3,w2a2"), one_slot(work))
    assert work.groups == [[4, 3, 2], [4, 3, 2]]
    assert [len(record["together_with"]) for record in data_of(summary)] == [2] * 6
    assert attempts(tmp_path / "run") == {1}


def test_no_slot_is_left_idle(tmp_path: Path) -> None:
    work = Together()
    schedule(tmp_path / "run", plan_of("gdfq", "w4a4,w3a3,w2a2"), Executor(work))
    assert sorted(work.groups) == [[2], [4, 3]]


@pytest.mark.parametrize("rules", [Rules(separate=True), Rules(time_limit=600.0)])
def test_a_worker_for_each_cell(rules: Rules, tmp_path: Path) -> None:
    work = Together()
    schedule(tmp_path / "run", plan_of("gdfq", "w4a4,w3a3"), one_slot(work), rules=rules)
    assert work.groups == [[4], [3]]


def test_what_a_worker_declines_waits_again_at_once(tmp_path: Path) -> None:
    second = threading.Event()
    groups: list[list[int]] = []

    def work(job: Job, on_event: OnEvent, stop: Cancellation) -> Outcome:
        groups.append(widths(job))
        on_event(SourceReady(shared=False))
        on_event(SharedJob(Sharing.ALONE, len(job.members)))
        if len(groups) > 1:
            second.set()
        # The other slot takes what was declined while this job is still at work.
        assert second.wait(60)
        return done()

    summary = schedule(tmp_path / "run", plan_of("gdfq", "w4a4,w3a3,w2a2"), Executor(work))
    assert sorted(groups) == [[2], [3], [4, 3]]
    assert [record["together_with"] for record in data_of(summary)] == [[]] * 3
    assert attempts(tmp_path / "run") == {1}


def test_a_partner_of_which_nothing_is_said_runs_by_itself(tmp_path: Path) -> None:
    work = Together([None, done()])
    summary = schedule(tmp_path / "run", plan_of("gdfq", "w4a4,w3a3,w2a2"), one_slot(work))
    assert work.groups == [[4, 3, 2], [3]]
    assert [len(record["together_with"]) for record in data_of(summary)] == [2, 0, 2]
    assert attempts(tmp_path / "run") == {1}


@pytest.mark.parametrize("status", ["failed", "oom"])
def test_where_a_worker_dies_each_of_its_cells_has_one_of_its_own(status: str, tmp_path: Path) -> None:
    died = Outcome(status, error={"type": "WorkerDied", "message": "killed", "phase": None}, died=True)
    work = Together([done(), None], died)
    summary = schedule(tmp_path / "run", plan_of("gdfq", "w4a4,w3a3,w2a2"), one_slot(work))
    assert work.groups == [[4, 3, 2], [4], [3], [2]]
    assert [record["together_with"] for record in data_of(summary)] == [[]] * 3
    assert summary.failed == []
    assert attempts(tmp_path / "run") == {1}


def test_a_stop_ends_all_of_them(tmp_path: Path) -> None:
    stop = Cancellation()

    def work(job: Job, on_event: OnEvent, stop: Cancellation) -> Outcome:
        on_event(SharedJob(Sharing.ONE_LOOP, 2))
        stop.request("signal")
        ended = [Outcome("preempted", error=dict(PREEMPTED)) for _ in range(3)]
        return Outcome("preempted", error=dict(PREEMPTED), members=ended[:1])

    summary = schedule(tmp_path / "run", plan_of("gdfq", "w4a4,w3a3,w2a2"), one_slot(work), stop)
    assert [record["status"] for record in data_of(summary)] == ["preempted", "preempted"]
    assert summary.missing == 3


def swept(
    out: Path, methods: str, *settings: str, bits: tuple[str, ...] = BITS, **options: Any
) -> tuple[Summary, dict[str, dict[str, Any]]]:
    plugins = load_plugins([PLUGINS / "common.py"])
    selection = parse_selection(methods=methods, bits=",".join(bits), limit=60, settings=list(settings))
    grid = apply(load_grid("smoke", plugins), selection).model_copy(update={"threads": 1})
    plan = build_plan(grid, Catalogue.discover([]), plugins)
    summary = run_plan(plan, plugins, Options(out, None, "cpu", **options), Console(quiet=True))[0]
    return summary, {record["scheme"]["label"].partition("@")[0]: record for record in data_of(summary)}


def test_a_real_worker_that_exits_is_found_out(tmp_path: Path) -> None:
    _, found = swept(tmp_path, "feeds", "fragile.bits=3", "fragile.how=exits", bits=BITS[:2])
    assert [found[bits]["status"] == "failed" for bits in BITS[:2]] == [False, True]
    assert "ended with status 5" in found["w3a3"]["error"]["message"]
    assert [record["together_with"] for record in found.values()] == [[]] * 2
    assert attempts(tmp_path / "smoke") == {1}


def test_a_sweep_shares_and_states_the_cost(tmp_path: Path) -> None:
    summary, found = swept(tmp_path / "one", "gdfq", *SMALL)
    _, separate = swept(tmp_path / "two", "gdfq", *SMALL, executor="inline", rules=Rules(separate=True))
    first, *others = (found[bits] for bits in BITS)
    cells = {record["cell_id"] for record in found.values()}
    for record in found.values():
        assert set(record["together_with"]) == cells - {record["cell_id"]}
        seconds = record["seconds"]
        parts = ("setup", "paid_synthesis", "quantization", "evaluation", "unattributed")
        assert sum(seconds[part] for part in parts) == pytest.approx(seconds["wall"], abs=1e-6)
        assert 0 <= seconds["unattributed"] < 0.2 * first["seconds"]["wall"] + 1.0
    assert first["reused_from"] is None
    for record in others:
        assert record["reused_from"] == record["source_id"]
        assert record["seconds"]["paid_synthesis"] < 0.1 * first["seconds"]["paid_synthesis"] + 0.1
        assert record["seconds"]["synthesis"] == pytest.approx(first["seconds"]["synthesis"], rel=0.2, abs=0.1)
    same_numbers = ("cell_id", "top1", "top5", "agreement", "correct", "counts", "coverage", "source_kind")
    for bits in BITS:
        assert separate[bits]["together_with"] == []
        assert {key: separate[bits][key] for key in same_numbers} == {key: found[bits][key] for key in same_numbers}
    # What the group has cost in all is about what the estimate of the next one says.
    whole = sum(record["seconds"]["wall"] for record in found.values())
    selection = parse_selection(methods="gdfq", bits=",".join(BITS), seeds="1", settings=list(SMALL))
    grid = apply(load_grid("smoke", load_plugins()), selection).model_copy(update={"threads": 1})
    plan = build_plan(grid, Catalogue.discover([]), load_plugins())
    estimate = History(summary.records).estimate(plan.cells, "cpu", {})
    assert whole * 0.3 < estimate.seconds < whole * 1.2
