from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dfqbench.api import PluginError
from dfqbench.cli.main import main
from dfqbench.plugins import load_plugins
from dfqbench.quant import known_range_rules
from dfqbench.quant.observers import observer_class

RULE = """
import torch
from dfqbench.api import Offer, hookimpl
from dfqbench.quant import Observer

class Half(Observer):
    def forward(self, x):
        return torch.zeros(()), x.detach().max() * 0.5

@hookimpl
def dfqbench_range_rules():
    return [Offer("half", ":Half"), Offer("nowhere", ":Nothing"), Offer("number", ":NUMBER")]

NUMBER = 3
"""


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    file = tmp_path / "half.py"
    file.write_text(RULE, encoding="utf-8")
    return file


def run(monkeypatch: pytest.MonkeyPatch, out: Path, plugin: Path, rule: str, cross: str = "noise+distill:gdfq") -> int:
    quantizer = cross.partition("+")[2].partition(":")[0]
    arguments = ["--grid", "smoke", "--methods", cross, "--bits", "w4a4", "--limit", "20"]
    arguments += ["--set", f"{quantizer}.range={rule}", "--plugin", str(plugin), "--out", str(out)]
    monkeypatch.setattr("sys.argv", ["dfqbench", "run", *arguments, "--executor", "inline"])
    return main()


def test_rule_of_a_plugin_serves_a_run_and_its_code_is_part_of_the_identity(
    plugin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for factor in ("0.5", "0.25"):
        plugin.write_text(RULE.replace("0.5", factor), encoding="utf-8")
        assert run(monkeypatch, tmp_path / "runs", plugin, "half") == 0
    records = [json.loads(file.read_text()) for file in (tmp_path / "runs").rglob("record.json")]
    assert [record["status"] in {"ok", "collapsed"} for record in records] == [True, True]
    assert len({record["student_id"] for record in records}) == 2


def test_observer_class_of_a_plugin(plugin: Path) -> None:
    load_plugins([plugin])
    low, high = observer_class("half")()(torch.tensor([-1.0, 4.0]))
    assert (float(low), float(high)) == (0.0, 2.0)
    for name in ("nowhere", "number"):
        with pytest.raises(PluginError, match=f"range rule '{name}'"):
            observer_class(name)
    load_plugins()
    assert "half" not in known_range_rules()


def test_unknown_rule_is_refused_before_anything_runs(
    plugin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, tmp_path / "runs", plugin, "haif") == 2
    assert "did you mean half" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_every_rule_of_calibrate_makes_another_student_that_its_record_names(
    plugin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rules = ["mean", "percentile:99.5", "bn"]
    for rule in rules:
        assert run(monkeypatch, tmp_path / "runs", plugin, rule, "noise+calibrate") == 0
    records = [json.loads(file.read_text()) for file in (tmp_path / "runs").rglob("record.json")]
    assert {record["range"] for record in records} == set(rules)
    assert len({record["student_id"] for record in records}) == len(records) == len(rules)
    assert {record["range"]: record["used_images"] for record in records} == dict.fromkeys(rules, 64) | {"bn": 0}
    assert {record["range"]: record["counts"]["student_images"] for record in records}["bn"] == 0


def test_rule_that_does_not_fit_is_refused(
    plugin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for rule, cross, message in (
        ("percentile:101", "noise+calibrate", "write percentile:NUMBER, from 50 to 100"),
        ("ema-official", "noise+calibrate", "needs at least 200 steps, got 1"),
        ("bn", "noise+distill:gdfq", "'bn' follows no batches"),
    ):
        assert run(monkeypatch, tmp_path / "runs", plugin, rule, cross) == 2
        assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "runs").exists()
