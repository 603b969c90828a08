"""Several runs on one folder: every cell is run once, and those of a dead or suspended run are taken over."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from threading import Barrier

import pytest

from dfqbench.api import UsageError
from dfqbench.run.execute.job import Outcome
from dfqbench.run.schedule import scheduler
from dfqbench.run.schedule.run_environment import Rules
from dfqbench.run.store.lease import Leases, is_held
from dfqbench.run.store.record import Record
from dfqbench.run.store.run_folder import RunFolder
from dfqbench.run.store.status import MEASURED
from peer import CELLS, Peer
from pretend import Executor, done, plan_of, schedule


@pytest.fixture
def peers(tmp_path: Path) -> Iterator[list[Peer]]:
    started: list[Peer] = []
    with ExitStack() as processes:
        yield started
        for peer in started:
            peer.process.kill()
            processes.enter_context(peer.process)


def records(folder: Path) -> list[Path]:
    return sorted(folder.glob("cells/*/attempt-*/record.json"))


def test_each_cell_runs_once_where_flock_does_nothing(tmp_path: Path, peers: list[Peer]) -> None:
    peers += [Peer(tmp_path, seconds=0.3, lease=30.0) for _ in range(2)]
    summaries = [peer.end() for peer in peers]
    begun = [cell for peer in peers for cell in peer.begun]
    assert len(begun) == len(set(begun)) == len(records(tmp_path)) == CELLS
    assert max(summary["records"] for summary in summaries) == CELLS
    assert list((tmp_path / "locks").iterdir()) == []


def test_cell_of_a_killed_run_is_taken_over(tmp_path: Path, peers: list[Peer]) -> None:
    peers.append(Peer(tmp_path, seconds=600.0, lease=30.0))
    cell = peers[0].wait_until_begun()
    peers.append(Peer(tmp_path, seconds=0.0, lease=30.0))
    peers[1].wait_until_begun()
    os.kill(peers[0].process.pid, signal.SIGKILL)
    # While it is waited for, a process that is dead still has a number.
    peers[0].process.wait()
    assert peers[1].end() == {"records": CELLS, "missing": 0, "holders": []}
    assert cell in peers[1].begun
    assert len(records(tmp_path)) == CELLS


@pytest.mark.slow
def test_run_that_was_suspended_beyond_its_lease_discards_its_result(tmp_path: Path, peers: list[Peer]) -> None:
    peers.append(Peer(tmp_path, seconds=1.0, lease=2.0))
    cell = peers[0].wait_until_begun()
    os.kill(peers[0].process.pid, signal.SIGSTOP)
    peers.append(Peer(tmp_path, seconds=0.0, lease=2.0))
    assert peers[1].end()["records"] == CELLS
    assert cell in peers[1].begun
    os.kill(peers[0].process.pid, signal.SIGCONT)
    assert peers[0].end() == {"records": CELLS, "missing": 0, "holders": []}
    assert peers[0].begun == [cell]
    assert len(records(tmp_path)) == CELLS


def test_run_leaves_once_others_hold_what_is_left_and_live(tmp_path: Path, peers: list[Peer]) -> None:
    peers.append(Peer(tmp_path, seconds=600.0, lease=3.0))
    cell = peers[0].wait_until_begun()
    executor = Executor(lambda *_: done(), slots=1)
    summary = schedule(tmp_path, plan_of("noise", seeds="0-3"), executor, rules=Rules(lease_seconds=3.0))
    assert (len(summary.records), summary.missing, len(executor.jobs)) == (CELLS - 1, 1, CELLS - 1)
    assert [holder.split()[:2] for holder in summary.holders] == [["process", str(peers[0].process.pid)]]
    assert not (tmp_path / "cells" / cell / "attempt-1" / "record.json").exists()


def test_lease_is_taken_over_where_the_library_does_not(tmp_path: Path) -> None:
    # As a machine without power leaves it.
    (tmp_path / "cell.lease").write_bytes(b"")
    leases, begin = Leases(tmp_path, 0.4), time.monotonic()
    while (lease := leases.take("cell")) is None:
        assert not leases.is_alive("cell")
        time.sleep(0.05)
    assert time.monotonic() - begin >= 0.4
    assert lease.token is not None
    assert is_held(lease.lock_file, lease.token)
    assert not is_held(lease.lock_file, "another token")
    lease.release()
    assert list(tmp_path.iterdir()) == []


def test_leases_of_two_lengths_are_refused(tmp_path: Path) -> None:
    lease = Leases(tmp_path, 30.0).take("cell")
    assert lease is not None
    with pytest.raises(UsageError, match=r"leases of another length: .*30\.0s .*60\.0s"):
        Leases(tmp_path, 60.0).take("cell")
    lease.release()


def test_of_two_finished_attempts_of_one_lease_the_newest_stays(tmp_path: Path) -> None:
    run, numbers = RunFolder(tmp_path), range(1, 4)
    for number in numbers:
        folder, _ = run.new_attempt("aa11")
        facts = {"schema": 1, "cell_id": "aa11", "attempt": number, "status": "failed"}
        run.write_record(folder, Record.from_data(facts))
    # The first was there before the lease; the other two were written by runs that both believed to have it.
    assert run.newest_recorded("aa11") == 3
    assert not run.keep_newest("aa11", after=1, attempt=2)
    assert [record.attempt for record, _ in run.records() if record is not None] == [1, 3]
    assert run.keep_newest("aa11", after=1, attempt=3)


def test_every_slot_gets_a_cell_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("POLL", "LONG_POLL"):
        monkeypatch.setattr(scheduler, name, 600.0)
    together = Barrier(4)

    def work(*_: object) -> Outcome:
        together.wait(60)
        return done()

    summary = schedule(tmp_path, plan_of("noise", seeds="0-3"), Executor(work, slots=4))
    assert {record.status for record in summary.records} <= MEASURED


def failing() -> Executor:
    return Executor(lambda *_: Outcome("failed", error={"type": "ValueError", "message": "x", "phase": None}), slots=1)


def test_failures_of_other_runs_count(tmp_path: Path) -> None:
    plan, rules = plan_of("noise", seeds="0-3"), Rules(max_failures=1)
    other = failing()

    def work(*_: object) -> Outcome:
        schedule(tmp_path, plan, other, rules=rules)
        return done()

    executor = Executor(work, slots=1)
    summary = schedule(tmp_path, plan, executor, rules=rules)
    assert (len(executor.jobs), len(other.jobs)) == (1, 1)
    assert (len(summary.failed), summary.missing) == (1, 2)


@pytest.mark.parametrize(("since", "jobs"), [("", 2), ("2000-01-01", 0), ("2999-01-01", 2)])
def test_failures_are_counted_since_a_time(since: str, jobs: int, tmp_path: Path) -> None:
    schedule(tmp_path, plan_of("noise", seeds="0"), failing())
    executor = Executor(lambda *_: done(), slots=1)
    schedule(tmp_path, plan_of("noise", seeds="0-2"), executor, rules=Rules(max_failures=1, failures_since=since))
    assert len(executor.jobs) == jobs
