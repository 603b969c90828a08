"""`dfqbench table`: one run or all; corrupt records are warnings; slips are usage errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from dfqbench.api import UsageError
from dfqbench.cli import table


def run(*arguments: str | Path) -> Result:
    app = typer.Typer()
    # A second command, so that typer does not drop the verb's name.
    app.command("other")(lambda: None)
    table.register(app)
    return CliRunner().invoke(app, ["table", *map(str, arguments)])


def write(out: Path, run_name: str, cell: str, attempt: int = 1, **changes: Any) -> Path:
    record: dict[str, Any] = {
        "schema": 1,
        "run": run_name,
        "cell_id": cell,
        "attempt": attempt,
        "status": "ok",
        "method": "zeroq",
        "target": "digits",
        "model": {"ref": "digits:resnet8"},
        "scheme": {"label": "w4a4@gdfq", "w_bits": 4, "a_bits": 4},
        "budget": "short",
        "seed": 0,
        "dataset": {"name": "digits", "n": 540},
        "fp_top1": 98.0,
        "top1": 90.0,
        "environment": "e1",
    }
    folder = out / run_name / "cells" / cell / f"attempt-{attempt}"
    folder.mkdir(parents=True)
    (folder / "record.json").write_text(json.dumps(record | changes))
    return folder


@pytest.fixture
def out(tmp_path: Path) -> Path:
    write(tmp_path, "one", "aaa")
    write(tmp_path, "two", "bbb", method="noise", top1=20.0)
    environments = tmp_path / "one" / "environments"
    environments.mkdir()
    (environments / "e1.json").write_text(json.dumps({"device": "cpu", "device_name": "Toy", "cores": 2}))
    return tmp_path


def test_all_runs(out: Path) -> None:
    result = run("--out", out)
    assert result.exit_code == 0
    assert "90.00" in result.stdout
    assert "20.00" in result.stdout
    assert "hardware: cpu: Toy, 2 cores" in result.stdout


def test_one_run(out: Path) -> None:
    [record] = json.loads(run("two", "--out", out, "--format", "json").stdout)
    assert record["method"] == "noise"


@pytest.mark.parametrize(("fmt", "start"), [("md", "### digits"), ("csv", "run,source_id"), ("text", "digits (540")])
def test_formats(out: Path, fmt: str, start: str) -> None:
    assert run("--out", out, "--format", fmt).stdout.startswith(start)


def test_corrupt_record_is_a_warning(out: Path) -> None:
    write(out, "two", "ccc").joinpath("record.json").write_text('{"schema": 1, ')
    result = run("--out", out, "--format", "json")
    assert result.exit_code == 0
    assert len(json.loads(result.stdout)) == 2
    assert "ccc" in result.stderr
    assert result.stderr.startswith("dfqbench: warning: ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tow"], "unknown run 'tow'; did you mean two"),
        (["--format", "pdf"], "unknown format 'pdf'"),
        (["--rows", "metod"], "unknown row or column 'metod'; did you mean method"),
        (["--value", "top"], "unknown value 'top'; did you mean top5 or top1"),
        (["--rows", "model"], "'model' stands for rows or columns twice"),
        (["--vs", "papers"], "unknown comparison 'papers'; did you mean paper"),
    ],
)
def test_slips(out: Path, arguments: list[str], message: str) -> None:
    error = run(*arguments, "--out", out).exception
    assert isinstance(error, UsageError)
    assert message in str(error)


def test_no_runs(tmp_path: Path) -> None:
    error = run("--out", tmp_path / "absent").exception
    assert isinstance(error, UsageError)
    assert "no run" in str(error)
