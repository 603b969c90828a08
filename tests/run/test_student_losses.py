"""Cells of recipes with a student loss of their own, on images of any source."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dfqbench.cli.main import main

RECIPES = ("adadfq", "hast", "synq", "dafl", "akd")
PASSES = {"adadfq": 1, "hast": 2, "synq": 2, "dafl": 1, "akd": 1}
"""Passes of an update through teacher and student."""


@pytest.mark.slow
def test_smoke_cells_of_student_losses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    methods = ",".join(f"noise+distill:{recipe}" for recipe in RECIPES)
    arguments = ["--grid", "smoke", "--methods", methods, "--bits", "w4a4", "--limit", "20", "--executor", "inline"]
    arguments += ["--set", "distill.batch_few_classes=16", "--set", "noise.images=32", "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["dfqbench", "run", *arguments])
    assert main() == 0
    records = {}
    for file in tmp_path.rglob("record.json"):
        record = json.loads(file.read_text())
        records[record["recipe"]] = record
    assert set(records) == set(RECIPES)
    for recipe, passes in PASSES.items():
        assert records[recipe]["status"] in {"ok", "collapsed"}
        counts = records[recipe]["counts"]
        assert counts["teacher_images"] == passes * 16 * counts["optimizer_steps"], recipe
    assert records["akd"]["counts"]["optimizer_steps"] % 10 == 0
