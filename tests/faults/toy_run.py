"""A run of the toy grid, and its comparison with an undisturbed one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Container
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dfqbench.run.store.record import Record
from dfqbench.run.store.run_folder import RunFolder
from dfqbench.run.store.status import MEASURED

HERE = Path(__file__).parent
NAME = "faults"
GRID = f"""
name = "{NAME}"
on = ["digits"]
methods = ["toy"]
schemes = ["w4a4", "w3a3"]
seeds = [0]
budget = "smoke"
threads = 1
limit = 60
"""
TIMEOUT = 900
MEASUREMENTS = {"status", "top1", "top5", "fp_top1", "drop", "agreement", "correct", "counts", "coverage", "flags"}
"""Groups of a record that must not depend on faults."""


@dataclass(slots=True)
class Report:
    """Injected faults by kind, finished cells whose record was lost, torn records, differences from the reference."""

    injected: Counter[str] = field(default_factory=Counter)
    lost: int = 0
    torn: int = 0
    different: list[str] = field(default_factory=list)

    def add(self, other: Report) -> None:
        self.injected += other.injected
        self.lost += other.lost
        self.torn += other.torn
        self.different += other.different

    def inspect(self, run: ToyRun, finished: set[str]) -> None:
        self.torn += run.torn()
        self.lost += len(finished - run.finished())

    def compare(self, run: ToyRun, reference: ToyRun) -> None:
        results, expected = run.results(), reference.results()
        for cell in sorted({*results, *expected}):
            if cell not in results or cell not in expected:
                self.different.append(f"cell {cell} is in one run only")
                continue
            if keys := [key for key, value in expected[cell].items() if results[cell][key] != value]:
                self.different.append(f"cell {cell} differs in {', '.join(keys)}")
        if run.table() != reference.table():
            self.different.append("the tables differ")

    def __str__(self) -> str:
        kinds = ", ".join(f"{kind} {count}" for kind, count in self.injected.items())
        equal = "different:" if self.different else "equal to the undisturbed ones, digit for digit"
        lines = (
            f"faults injected: {self.injected.total()} ({kinds})",
            f"cells lost: {self.lost}",
            f"records torn: {self.torn}",
            f"tables and students: {equal}",
        )
        return "\n".join([*lines, *(f"  {line}" for line in self.different)])


class ToyRun:
    """A run of the toy grid in the results folder `out`; `grid` is a file that holds `GRID`."""

    def __init__(self, out: Path, grid: Path) -> None:
        self.grid = grid
        self.folder = RunFolder(out / NAME)
        fixed = ("--grid", str(grid), "--plugin", str(HERE / "toy.py"), "--out", str(out), "--checkpoint-every", "0s")
        self._command = [sys.executable, "-m", "dfqbench", "run", *fixed, "--device", "cpu"]

    def start(self, *arguments: str, armed: Path | None = None, **options: Any) -> subprocess.Popen[str]:
        """Start the command; `armed` is a folder of faults, `options` are those of `Popen`."""
        environment = {key: value for key, value in os.environ.items() if key != "DFQBENCH_DATA"}
        if armed is not None:
            path = os.pathsep.join(filter(None, (str(HERE / "startup"), environment.get("PYTHONPATH"))))
            environment |= {"DFQBENCH_FAULTS": str(armed), "PYTHONPATH": path}
        pipes: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
        return subprocess.Popen([*self._command, *arguments], text=True, env=environment, **pipes, **options)

    def run(self, *arguments: str, statuses: Container[int] = (0,), **options: Any) -> int:
        """Run the command to its end; return its status, or raise if it has another or shows a traceback."""
        process = self.start(*arguments, **options)
        _, errors = process.communicate(timeout=TIMEOUT)
        if process.returncode not in statuses or "Traceback" in errors:
            raise RuntimeError(f"{process.args!r} ended with status {process.returncode}:\n{errors}")
        return process.returncode

    def _measured(self) -> dict[str, tuple[Record, Path]]:
        found = self.folder.records()
        return {record.cell_id: (record, path) for record, path in found if record and record.status in MEASURED}

    def finished(self) -> set[str]:
        return set(self._measured())

    def torn(self) -> int:
        return sum(record is None for record, _ in self.folder.records())

    def results(self) -> dict[str, dict[str, Any]]:
        """Return what must not depend on faults, by cell: numbers, counts, the bytes of students and images."""
        files = ("student.safetensors", "images.safetensors")
        return {
            cell: record.model_dump(include=MEASUREMENTS) | {name: (path.parent / name).read_bytes() for name in files}
            for cell, (record, path) in self._measured().items()
        }

    def table(self) -> str:
        text = (self.folder.path / "table.txt").read_text(encoding="utf-8")
        return re.sub(r"\s+[\d.]+ (s|min|h)\b", " TIME", text)
