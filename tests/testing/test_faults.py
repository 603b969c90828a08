"""Sweeps that are killed again and again lose nothing, and end with the digits of an undisturbed one.

The long form, with full disks and unreadable folders, is `tox -e faults`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from dfqbench.run.store.record import Record
from dfqbench.testing.faults.__main__ import Disturbance, disturb, report
from dfqbench.testing.faults.catalogue import KINDS, choose, counted
from dfqbench.testing.faults.sweeps import Findings, Sweep, compare


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_nothing_is_lost(tmp_path: Path) -> None:
    findings = disturb(tmp_path, Disturbance(kills=10, seed=1, at_once=2))
    lines = report(findings)
    assert findings.injected == dict.fromkeys(KINDS, 2), lines
    assert (findings.lost, findings.torn, findings.wrong) == (0, 0, []), lines


def test_the_choice_is_seeded_and_even() -> None:
    assert choose(50, 3) == choose(50, 3) != choose(50, 4)
    assert counted(choose(50, 0)) == dict.fromkeys(KINDS, 10)
    everything = choose(500, 0)
    assert {fault.victim for fault in everything} == {"self", "parent", "tear"}
    assert {fault.role for fault in everything} == {"worker", "parent", "evaluator"}


def test_a_difference_would_be_noticed(tmp_path: Path) -> None:
    """The harness itself must be able to find something."""
    sweeps = []
    for name, top1 in (("a", 50.0), ("b", 50.5)):
        sweep = Sweep(tmp_path / name, tmp_path / "grid.toml")
        folder, _ = sweep.folder.new_attempt("cell1")
        keys = ("top5", "fp_top1", "drop", "agreement", "correct", "counts", "coverage", "flags")
        record = {"schema": 1, "cell_id": "cell1", "status": "ok", "top1": top1} | dict.fromkeys(keys)
        sweep.folder.write_record(folder, Record.from_data(record))
        for file in ("student.safetensors", "images.safetensors"):
            (folder / file).write_bytes(b"same")
        (sweep.folder.path / "table.txt").write_text(f"{top1}   1.2 s")
        sweeps.append(sweep)
    findings = Findings()
    compare(sweeps[0], sweeps[1], findings)
    assert findings.wrong == ["cell cell1 differs in top1", "the tables differ"]
    (folder / "record.json").write_text("{")
    assert sweeps[1].torn() == 1
    assert sweeps[1].finished() == {}
