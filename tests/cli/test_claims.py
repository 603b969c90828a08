"""`dfqbench claims`: the field with its sources."""

from __future__ import annotations

import csv
import io
import json

import pytest
import typer
from typer.testing import CliRunner, Result

from dfqbench.api import UsageError
from dfqbench.cli import claims
from dfqbench.report.literature.published import disagreements, published_numbers, select


def run(*arguments: str) -> Result:
    app = typer.Typer()
    app.command("other")(lambda: None)
    claims.register(app)
    return CliRunner().invoke(app, ["claims", *arguments])


def test_everything() -> None:
    rows = list(csv.DictReader(io.StringIO(run("--format", "csv").stdout)))
    assert len(rows) == len(published_numbers())
    assert all(row["reported_in"] for row in rows)
    assert {row["implemented"] for row in rows} >= {"", "zeroq+calibrate", "zeroq+distill", "gdfq+distill"}


def test_one_cell() -> None:
    text = run("--model", "torchvision:resnet18", "--bits", "W4A4").stdout
    assert "ImageNet, ResNet-18" in text
    assert "ResNet-50" not in text
    assert "Sources disagree about the same cell" in text
    assert "ZeroQ, ImageNet ResNet-18 w4a4: 41.59 points apart: 19.09 (SQuant ICLR22)" in text
    found = json.loads(run("--model", "resnet18", "--bits", "w4a4", "--on", "imagenet", "--format", "json").stdout)
    assert {entry["top1"] for entry in found if entry["method"] == "ZeroQ"} == {19.09, 20.0, 21.79, 22.58, 26.04, 60.68}
    assert next(e["drop"] for e in found if e["top1"] == 26.04 and e["fp_top1"]) == pytest.approx(45.43)


def test_methods_by_either_name() -> None:
    printed = run("--method", "Real-data calibration", "--format", "json").stdout
    ours = json.loads(run("--method", "real", "--format", "json").stdout)
    assert 0 < len(json.loads(printed)) < len(ours)


def test_times() -> None:
    text = run("--times", "--method", "GDFQ", "--model", "resnet18").stdout
    assert "1.7 h" in text
    assert "A100" in text
    assert "5.7 h" not in text
    found = json.loads(run("--times", "--method", "squant", "--format", "json").stdout)
    table = "SQuant ICLR22 Table 3 (repo image/time.png)"
    assert {entry["source"] for entry in found} == {table, "SQuant abstract/notes"}
    assert "no printed times" in run("--times", "--method", "acq").stdout


def test_rounding_is_no_disagreement() -> None:
    found = select(published_numbers(), method="gdfq", model="resnet18", bits="w4a4")
    assert len({claim.top1 for claim in found}) > 1
    assert disagreements(found) == []


def test_markdown_has_sources() -> None:
    text = run("--method", "acq", "--format", "md").stdout
    assert "| w4a4" in text
    assert "ACQ abstract" in text
    assert "no claims" in run("--bits", "w1a1").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "zerq"], "unknown method 'zerq'; did you mean zeroq"),
        (["--model", "resnet81"], "unknown model 'resnet81'"),
        (["--on", "cifar"], "unknown dataset 'cifar'"),
        (["--bits", "4"], "'4' is no bit-width; write for example --bits w4a4"),
        (["--format", "latex"], "unknown format 'latex'"),
    ],
)
def test_slips(arguments: list[str], message: str) -> None:
    error = run(*arguments).exception
    assert isinstance(error, UsageError)
    assert message in str(error)
