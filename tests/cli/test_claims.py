from __future__ import annotations

import csv
import dataclasses
import io

import pytest
from tests.cli.calls import Call

from dfqbench.report.literature.published import disagreements, published_numbers, select


def test_csv_has_every_number_with_its_source(call: Call) -> None:
    rows = list(csv.DictReader(io.StringIO(call("claims", "--format", "csv").out)))
    assert len(rows) == len(published_numbers())
    assert all(row["reported_in"] for row in rows)
    assert {row["implemented"] for row in rows} >= {"", "zeroq+calibrate", "zeroq+distill", "gdfq+distill"}


def test_one_cell(call: Call) -> None:
    text = call("claims", "--model", "torchvision:resnet18", "--bits", "W4A4").out
    assert [part in text for part in ("ImageNet, ResNet-18", "ResNet-50")] == [True, False]
    assert "Sources disagree about the same cell" in text
    text = " ".join(text.split())
    assert "ZeroQ, ImageNet ResNet-18 w4a4, calibrated: 6.95 points apart: 19.09 (SQuant ICLR22)" in text
    assert "ZeroQ, ImageNet ResNet-18 w4a4, fine-tuned: 2.70 points apart: 60.68 (PLF CVPR24)" in text
    arguments = ("--model", "resnet18", "--bits", "w4a4", "--on", "imagenet", "--format", "json")
    numbers = call("claims", *arguments).json
    assert {row["top1"] for row in numbers if row["method"] == "ZeroQ"} == {
        19.09,
        20.0,
        20.77,
        21.79,
        22.58,
        26.04,
        60.68,
        63.38,
    }
    assert next(row["drop"] for row in numbers if row["top1"] == 26.04 and row["fp_top1"]) == pytest.approx(45.43)


def test_methods_by_either_name(call: Call) -> None:
    printed = call("claims", "--method", "Real-data calibration", "--format", "json").json
    implemented = call("claims", "--method", "real", "--format", "json").json
    assert 0 < len(printed) < len(implemented)


@pytest.mark.parametrize("name", ["squant", "dfq", "rex"])
def test_quantizers_of_weights_are_methods_without_images(call: Call, name: str) -> None:
    rows = call("claims", "--method", name, "--format", "json").json
    assert {(row["method"].lower(), row["implemented"]) for row in rows} == {(name, f"none+{name}")}
    assert call("claims", "--method", f"none+{name}", "--format", "json").json == rows
    assert {row["method"] for row in call("claims", "--method", "none", "--format", "json").json} == {
        "SQuant",
        "DFQ",
        "REx",
    }


def test_times(call: Call) -> None:
    text = call("claims", "--times", "--method", "GDFQ", "--model", "resnet18").out
    assert [part in text for part in ("1.7 h", "A100", "5.7 h")] == [True, True, False]
    times = call("claims", "--times", "--method", "squant", "--format", "json").json
    table = "SQuant ICLR22, Table 3"
    assert {row["source"] for row in times} == {table, "SQuant ICLR22, abstract"}
    assert "no printed times" in call("claims", "--times", "--method", "acq").out


def test_rounding_is_no_disagreement() -> None:
    number = select(published_numbers(), method="gdfq", model="resnet18", bits="w4a4")[0]
    near, far = (dataclasses.replace(number, top1=number.top1 + gap) for gap in (0.06, 0.2))
    assert disagreements([number, near]) == []
    assert disagreements([number, far]) == [[number, far]]


def test_markdown_has_sources(call: Call) -> None:
    text = call("claims", "--method", "acq", "--format", "md").out
    assert all(part in text for part in ("| w4a4", "ACQ abstract", "* ACQ abstract: Li et al., ACQ: Improving"))
    assert "no claims" in call("claims", "--method", "acq", "--bits", "w2a2").out
