from __future__ import annotations

import sys
from pathlib import Path

import pytest
from tests.cli.calls import Call


def test_list(call: Call) -> None:
    rows = {row["name"]: row for row in call("grids", "list", "--json").json}
    assert set(rows) >= {"first", "smoke", "w4a4", "w3a3", "w5a5", "w8a8", "bits", "table-gdfq", "table-synq"}
    assert rows["smoke"]["schemes"] == ["w4a4@gdfq"]
    assert {row["status"] for row in rows.values()} == {"ok"}
    assert "w8a8@gdfq, w5a5@gdfq" in call("grids", "list").out


def test_broken_grid_of_a_plugin_is_listed_with_its_reason(call: Call, tmp_path: Path) -> None:
    (tmp_path / "night.toml").write_text("schemes = 3\n")
    offer = f"def dfqbench_grids(): return [FileOffer('night', {str(tmp_path / 'night.toml')!r})]"
    (tmp_path / "mine.py").write_text(f"from dfqbench.api import FileOffer, hookimpl\n@hookimpl\n{offer}\n")
    option = ("--plugin", tmp_path / "mine.py")
    rows = {row["name"]: row for row in call("grids", "list", "--json", *option).json}
    assert (rows["night"]["status"], rows["w4a4"]["status"]) == ("broken", "ok")
    assert "key 'schemes'" in rows["night"]["reason"]
    assert "night is broken: " in call("grids", "list", *option).out


def test_show(call: Call, tmp_path: Path) -> None:
    shown = call("grids", "show", "w4a4").out
    assert 'schemes = ["w4a4@gdfq"]' in shown
    assert shown.splitlines()[0].endswith("w4a4.toml")
    full = call("grids", "show", "w4a4", "--json").json
    assert (full["threads"], full["set"], full["methods"]) == (
        1,
        {},
        ["*", "real", "noise+distill:gdfq", "real+distill:gdfq"],
    )
    (tmp_path / "mine.toml").write_text('schemes = ["w2a2"]\n')
    assert call("grids", "show", tmp_path / "mine.toml", "--json").json["name"] == "mine"


def test_plan_says_everything_that_is_missing(call: Call) -> None:
    output = call("plan", "--grid", "table-clusterq")
    assert output.status == 2, output
    *lines, error = output.err.splitlines()
    assert all(line.startswith("missing: ") for line in lines)
    missing = [line.removeprefix("missing: ") for line in lines]
    for expected in (
        "no evaluation set for 'cifar10'; run: dfqbench fetch cifar10",
        "no evaluation set for 'imagenet'; put the validation images at",
        "imagenet: no weights for pytorchcv:mobilenetv2_w1; run: dfqbench fetch pytorchcv:mobilenetv2_w1",
        "qimera: Choi et al., NeurIPS 2021: no plugin offers it",
    ):
        assert sum(line.startswith(expected) for line in missing) == 1, missing
    assert "target 'cifar10' cannot be used" in error


def test_missing_library_is_named(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytorchcv", None)
    monkeypatch.setitem(sys.modules, "pytorchcv.model_provider", None)
    assert "missing: cifar10: " in (err := call("plan", "--grid", "table-gdfq").err)
    assert "pip install" in err


@pytest.mark.slow
def test_run_writes_a_record_of_an_absent_method(call: Call, tmp_path: Path) -> None:
    arguments = (
        "--grid",
        "table-clusterq",
        "--on",
        "digits",
        "--models",
        "resnet8",
        "--bits",
        "w4a4",
        "--budget",
        "smoke",
    )
    run = ("--out", tmp_path, "--name", "t", "--executor", "inline")
    assert call("run", *arguments, "--methods", "zeroq,qimera", *run).status == 0
    rows = {row["method"]: row for row in call("table", "t", "--out", tmp_path, "--format", "json").json}
    assert (rows["zeroq"]["status"], rows["qimera"]["status"]) == ("ok", "unavailable")
