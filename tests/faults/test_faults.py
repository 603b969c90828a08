"""Runs that are killed lose nothing, and end with the digits of an undisturbed one; `tox -e faults` tries more."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from dfqbench.run.store.record import Record
from harness import inject
from kills import POINTS, choose
from toy_run import Report, ToyRun


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_runs_lose_nothing(tmp_path: Path) -> None:
    # One of each kind; among the victims are a worker, its parent and a torn checkpoint.
    assert {kill.victim for kill in choose(5, 11)} == {"self", "parent", "tear"}
    report = inject(tmp_path, kills=5, seed=11, at_once=2)
    assert report.injected == dict.fromkeys(POINTS, 1), report
    assert (report.lost, report.torn, report.different) == (0, 0, []), report


def test_choice_of_kills_is_seeded_and_even() -> None:
    assert choose(50, 3) == choose(50, 3) != choose(50, 4)
    assert Counter(kill.kind for kill in choose(50, 0)) == dict.fromkeys(POINTS, 10)
    many = choose(500, 0)
    assert {kill.victim for kill in many} == {"self", "parent", "tear"}
    assert {kill.role for kill in many} == {"worker", "parent", "evaluate"}


def test_harness_reports_differences_and_torn_records(tmp_path: Path) -> None:
    runs = []
    for name, top1 in (("a", 50.0), ("b", 50.5)):
        run = ToyRun(tmp_path / name, tmp_path / "grid.toml")
        folder, _ = run.folder.new_attempt("cell1")
        keys = ("top5", "fp_top1", "drop", "agreement", "correct", "counts", "coverage", "flags")
        record = {"schema": 1, "cell_id": "cell1", "status": "ok", "top1": top1} | dict.fromkeys(keys)
        run.folder.write_record(folder, Record.from_data(record))
        for file in ("student.safetensors", "images.safetensors"):
            (folder / file).write_bytes(b"same")
        (run.folder.path / "table.txt").write_text(f"{top1}   1.2 s")
        runs.append(run)
    report = Report()
    report.compare(*runs)
    assert report.different == ["cell cell1 differs in top1", "the tables differ"]
    (folder / "record.json").write_text("{")
    report.inspect(runs[1], {"cell1"})
    assert (report.lost, report.torn) == (1, 1)
