"""`dfqbench show`: the latest attempt at a cell, named by the beginning of its id."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from dfqbench.api import InputError, UsageError
from dfqbench.cli import show


def run(*arguments: str | Path) -> Result:
    app = typer.Typer()
    # A second command, so that typer does not drop the verb's name.
    app.command("other")(lambda: None)
    show.register(app)
    return CliRunner().invoke(app, ["show", *map(str, arguments)])


ERROR = {
    "type": "RuntimeError",
    "message": "boom",
    "phase": "synthesis",
    "step": 7,
    "traceback": "Traceback (most recent call last):\n  boom here\n",
}


def write(out: Path, cell: str, **changes: Any) -> Path:
    folder = out / "smoke" / "cells" / cell / "attempt-1"
    folder.mkdir(parents=True)
    record = {"schema": 1, "cell_id": cell, "method": "zeroq", "seconds": {"synthesis": 1.5}, "top5": None}
    (folder / "record.json").write_text(json.dumps(record | changes))
    (folder / "log.txt").write_text("".join(f"line {number}\n" for number in range(100)))
    return folder


@pytest.fixture
def out(tmp_path: Path) -> Path:
    write(tmp_path, "abc1", status="ok")
    write(tmp_path, "abd2", status="failed", error=ERROR)
    return tmp_path


def test_finished_cell(out: Path) -> None:
    result = run("abc", "--out", out)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0] == str(out / "smoke" / "cells" / "abc1" / "attempt-1")
    assert "method: zeroq" in lines
    assert "  synthesis: 1.5" in lines
    assert "top5" not in result.stdout
    assert "error:" not in lines
    assert "line 99" in lines
    assert "line 79" not in lines


def test_failed_cell(out: Path) -> None:
    text = run("abd", "--out", out).stdout
    assert "\nerror:\ntype: RuntimeError\nmessage: boom\nphase: synthesis\nstep: 7\n" in text
    assert text.rstrip().endswith("boom here")


def test_json(out: Path) -> None:
    assert json.loads(run("abd", "--out", out, "--json").stdout)["error"] == ERROR


def test_no_log(out: Path) -> None:
    (out / "smoke" / "cells" / "abc1" / "attempt-1" / "log.txt").unlink()
    result = run("abc", "--out", out)
    assert result.exit_code == 0
    assert "end of" not in result.stdout


@pytest.mark.parametrize(("prefix", "message"), [("ab", "several cells"), ("x", "no cell begins with 'x'")])
def test_prefix_must_name_one_cell(out: Path, prefix: str, message: str) -> None:
    error = run(prefix, "--out", out).exception
    assert isinstance(error, UsageError)
    assert message in str(error)


@pytest.mark.parametrize(("text", "message"), [("{", "cannot be read"), ("[]", "not a JSON object")])
def test_corrupt_record(out: Path, text: str, message: str) -> None:
    (out / "smoke" / "cells" / "abc1" / "attempt-1" / "record.json").write_text(text)
    error = run("abc", "--out", out).exception
    assert isinstance(error, InputError)
    assert message in str(error)
    assert "\n" not in str(error)


def test_interrupted_attempt(out: Path) -> None:
    (out / "smoke" / "cells" / "abc1" / "attempt-1" / "record.json").unlink()
    error = run("abc", "--out", out).exception
    assert isinstance(error, InputError)
    assert "has no record" in str(error)
