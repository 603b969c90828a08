"""`dfqbench table`: one run or all; corrupt records are warnings; slips are usage errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from dfqbench.api import UsageError
from dfqbench.cli import claims, report, table

PLUGINS = Path(__file__).parent.parent / "plugins"


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


CLAIMS = """source_paper,table_or_where,reported_in,method,dataset,model,w_bits,a_bits,fp_top1,top1,notes
Flat,Table 1,the flat paper,flat,digits,digits:resnet8,4,4,98.0,90.1,
Flat,Table 1,the flat paper,ZeroQ,digits,digits:resnet8,4,4,98.0,50.0,
"""


@pytest.fixture
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plugin in one file that brings claims along, of its method and of another."""
    folder = tmp_path_factory.mktemp("plugin")
    text = (PLUGINS / "flat.py").read_text().replace("import Context,", "import Context, FileOffer,")
    hook = f"""

@hookimpl
def dfqbench_claims():
    return [FileOffer("flat", {str(folder / "claims.csv")!r})]
"""
    (folder / "claims.csv").write_text(CLAIMS)
    file = folder / "flat_with_claims.py"
    file.write_text(text + hook)
    return file


def test_claims_of_a_plugin_are_judged(out: Path, plugin: Path) -> None:
    write(out, "three", "ddd", method="flat", budget="paper", quantizer="calibrate")
    write(out, "three", "eee", method="zeroq", budget="paper", quantizer="calibrate")
    arguments = ("three", "--out", out, "--vs", "paper", "--plugin", plugin)
    found = {entry["method"]: entry["claims"] for entry in json.loads(run(*arguments, "--format", "json").stdout)}
    assert [(entry["verdict"], entry["source"]) for entry in found["flat"]] == [
        ("reproduced", "the flat paper, Table 1")
    ]
    assert [entry["verdict"] for entry in found["zeroq"]] == ["above"]
    for fmt in ("text", "md", "latex", "html", "csv"):
        shown = run(*arguments, "--format", fmt).stdout
        assert "the flat paper" in " ".join(shown.split())
        assert "reproduced" in shown
    without = json.loads(run("three", "--out", out, "--vs", "paper", "--format", "json").stdout)
    assert [entry["claims"] for entry in without] == [[], []]


def test_claims_of_a_plugin_are_in_the_field_and_on_the_page(out: Path, plugin: Path) -> None:
    write(out, "three", "ddd", method="flat", budget="paper", quantizer="calibrate")
    app = typer.Typer()
    claims.register(app)
    report.register(app)
    field = CliRunner().invoke(app, ["claims", "--plugin", str(plugin), "--method", "flat", "--format", "json"])
    assert [(entry["top1"], entry["implemented"]) for entry in json.loads(field.stdout)] == [(90.1, "flat")]
    page = out / "page.html"
    made = CliRunner().invoke(
        app, ["report", "three", "--out", str(out), "--to", str(page), "--plugin", str(plugin)], catch_exceptions=False
    )
    assert made.exit_code == 0
    assert "90.10 (the flat paper)" in page.read_text()


def test_a_damaged_file_of_claims_is_a_warning(out: Path, plugin: Path) -> None:
    (plugin.parent / "claims.csv").write_text("a,b\n1,2\n")
    result = run("one", "--out", out, "--vs", "paper", "--plugin", plugin)
    assert result.exit_code == 0
    assert "90.00" in result.stdout
    assert "warning: claims 'flat' of " in result.stderr
    assert "lacks the column 'source_paper'" in result.stderr


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
