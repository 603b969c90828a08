"""Calls of the command line in this process, and records for it to read."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.report.records import record

PLUGINS = Path(__file__).parents[1] / "plugins"
BROKEN = PLUGINS / "broken" / "raises_on_import.py"
CONTROL = ("run", "--grid", "smoke", "--methods", "noise")


@dataclass(frozen=True)
class Output:
    """What a command leaves: its exit status, standard output and standard error."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output of a command that succeeded, parsed."""
        assert self.status == 0, self
        return json.loads(self.out)


Call = Callable[..., Output]


def refused(output: Output, *parts: str) -> str:
    """Check that a request was refused in one line before anything was written; return the line."""
    assert output.status == 2, output
    assert output.out == ""
    (line,) = output.err.splitlines()
    assert line.startswith("dfqbench: error: ")
    for part in parts:
        assert part in line, line
    assert "; " in line, f"it does not say what to do: {line}"
    assert list(Path().iterdir()) == [], "something was written"
    return line


def write_record(out: Path, run: str, cell: str, **changes: Any) -> Path:
    """Write the record of a finished cell; return the folder of its attempt."""
    folder = out / run / "cells" / cell / "attempt-1"
    folder.mkdir(parents=True)
    data: dict[str, Any] = {"run": run, "fp_top1": 98.5, "top1": 90.0, "top1_se": None} | changes
    full, top1 = data["fp_top1"], data["top1"]
    made = record(cell, **{"drop": None if top1 is None or full is None else full - top1} | data)
    (folder / "record.json").write_text(json.dumps(made.as_dict()))
    return folder
