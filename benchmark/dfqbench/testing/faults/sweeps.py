"""Runs of the toy sweep for the harness, and what is found in their folders."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dfqbench.run.store.record import Record
from dfqbench.run.store.run_folder import RunFolder
from dfqbench.run.store.status import MEASURED

HERE = Path(__file__).parent
TOY = HERE / "toy.py"
SITE = HERE / "site"
NAME = "faults"
GRID = """
name = "faults"
on = ["digits"]
methods = ["toy"]
schemes = ["w4a4", "w3a3"]
seeds = [0]
budget = "smoke"
threads = 1
limit = 60
"""
PATIENCE = 900
"""Seconds after which a run counts as hung."""


@dataclass(slots=True)
class Findings:
    """What one or more disturbed sweeps have shown.

    Attributes:
        injected: faults that were really injected, by kind.
        lost: finished cells whose record was gone later.
        torn: records that could not be read.
        wrong: differences from the undisturbed sweep, one line each.
    """

    injected: dict[str, int] = field(default_factory=dict)
    lost: int = 0
    torn: int = 0
    wrong: list[str] = field(default_factory=list)

    def add(self, kind: str, count: int = 1) -> None:
        """Counts faults."""
        self.injected[kind] = self.injected.get(kind, 0) + count

    def merge(self, other: Findings) -> None:
        """Adds what another has found."""
        for kind, count in other.injected.items():
            self.add(kind, count)
        self.lost += other.lost
        self.torn += other.torn
        self.wrong += other.wrong


class Sweep:
    """The toy sweep in a folder.

    Args:
        out: its results folder.
        grid: a grid file.
    """

    def __init__(self, out: Path, grid: Path) -> None:
        self.out = out
        self.grid = grid
        self.folder = RunFolder(out / NAME)

    def command(self, *more: str) -> list[str]:
        """The command line."""
        fixed = ("--grid", str(self.grid), "--plugin", str(TOY), "--out", str(self.out), "--checkpoint-every", "0s")
        return [sys.executable, "-m", "dfqbench", "run", *fixed, "--device", "cpu", *more]

    def start(self, *more: str, armed: Path | None = None, **options: Any) -> subprocess.Popen[str]:
        """Starts a run; `armed` is a folder of faults."""
        environment = {key: value for key, value in os.environ.items() if key != "DFQBENCH_DATA"}
        if armed is not None:
            path = os.pathsep.join(part for part in (str(SITE), environment.get("PYTHONPATH", "")) if part)
            environment |= {"DFQBENCH_FAULTS": str(armed), "PYTHONPATH": path}
        return subprocess.Popen(  # noqa: S603 - our own interpreter
            self.command(*more),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            **options,
        )

    def run(self, *more: str, armed: Path | None = None, **options: Any) -> subprocess.CompletedProcess[str]:
        """Runs to the end, whichever."""
        process = self.start(*more, armed=armed, **options)
        output, errors = process.communicate(timeout=PATIENCE)
        return subprocess.CompletedProcess(process.args, process.returncode, output, errors)

    def finished(self) -> dict[str, Record]:
        """The measured records by cell."""
        records = [record for record, _ in self.folder.records() if record is not None]
        return {record.cell_id: record for record in records if record.status in MEASURED}

    def torn(self) -> int:
        """Records that cannot be read."""
        return sum(record is None for record, _ in self.folder.records())

    def results(self) -> dict[str, Any]:
        """What must not depend on faults: numbers, counts, and the bytes of students and images."""
        found: dict[str, Any] = {}
        for record, path in self.folder.records():
            if record is None or record.status not in MEASURED:
                continue
            keys = ("status", "top1", "top5", "fp_top1", "drop", "agreement", "correct", "counts", "coverage", "flags")
            facts = record.model_dump(include=set(keys))
            for name in ("student.safetensors", "images.safetensors"):
                facts[name] = (path.parent / name).read_bytes()
            found[record.cell_id] = facts
        return found

    def table(self) -> str:
        """The table with its times masked: these are never the same twice."""
        text = (self.folder.path / "table.txt").read_text(encoding="utf-8")
        return re.sub(r"\s+[\d.]+ (s|min|h)\b", " TIME", text)


def compare(found: Sweep, wanted: Sweep, findings: Findings) -> None:
    """Notes every difference from the undisturbed sweep."""
    mine, theirs = found.results(), wanted.results()
    for cell in sorted({*mine, *theirs}):
        if cell not in mine or cell not in theirs:
            findings.wrong.append(f"cell {cell} is in one sweep only")
            continue
        differing = [key for key, value in theirs[cell].items() if mine[cell][key] != value]
        if differing:
            findings.wrong.append(f"cell {cell} differs in {', '.join(differing)}")
    if found.table() != wanted.table():
        findings.wrong.append("the tables differ")


def arm(folder: Path, faults: Sequence[Any]) -> None:
    """Writes faults where the processes of a run look for them."""
    folder.mkdir(parents=True)
    for number, fault in enumerate(faults):
        (folder / f"{number:03d}.json").write_text(json.dumps(fault.as_dict()), encoding="utf-8")
