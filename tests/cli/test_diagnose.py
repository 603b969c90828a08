"""`dfqbench diagnose`: slips, and folders that do not hold what they should."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import typer
from safetensors.torch import save_file
from tests.cli.test_table import write
from typer.testing import CliRunner, Result

from dfqbench.api import UsageError
from dfqbench.cli import diagnose
from dfqbench.targets.catalogue import Catalogue


def run(*arguments: str | Path) -> Result:
    app = typer.Typer()
    app.command("other")(lambda: None)
    diagnose.register(app)
    return CliRunner().invoke(app, ["diagnose", *map(str, arguments)])


@pytest.fixture
def attempt(tmp_path: Path) -> Path:
    """An attempt on the embedded target, with noise for images."""
    folder = write(tmp_path, "one", "aaa", label="zeroq", seconds={"synthesis": 6.4}, source_images=64)
    model = Catalogue.discover([]).models("digits", ())[0]
    (folder / "student.json").write_text(json.dumps({"model": model.as_dict()}))  # type: ignore[union-attr]
    images = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    save_file({"images": images, "labels": torch.arange(64) % 10}, folder / "images.safetensors")
    return folder


def test_findings_go_into_the_record(attempt: Path, tmp_path: Path) -> None:
    before = json.loads((attempt / "record.json").read_text())
    result = run("one", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    after = json.loads((attempt / "record.json").read_text())
    found = after.pop("diagnostics")
    assert after == before
    assert found["images"] == 64
    assert found["speed"] == 1.0
    assert 0 <= found["label_accuracy"] <= 100
    assert f"{found['bns']:.3f}" in result.stdout
    assert "1 cells diagnosed, 0 before" in result.stderr
    assert "0 cells diagnosed, 1 before" in run("one", "--out", tmp_path).stderr
    assert "1 cells diagnosed, 0 before" in run("one", "--out", tmp_path, "--again").stderr


def test_code_that_a_folder_names_is_not_run(attempt: Path, tmp_path: Path) -> None:
    hostile = tmp_path / "hostile.py"
    hostile.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\ndef net(): ...\n")
    description = json.loads((attempt / "student.json").read_text())
    description["model"] |= {"ref": f"py:{hostile}:net", "trusted": True, "weights": None, "random_seed": 0}
    (attempt / "student.json").write_text(json.dumps(description))
    result = run("one", "--out", tmp_path)
    assert result.exit_code == 1
    assert "not diagnosed: zeroq aaa:" in result.stderr
    assert not (tmp_path / "ran").exists()


def test_what_is_missing_is_told(attempt: Path, tmp_path: Path) -> None:
    (attempt / "images.safetensors").unlink()
    result = run("one", "--out", tmp_path)
    assert result.exit_code == 1
    assert "images.safetensors is missing; the attempt kept no images; run its cell again" in result.stderr
    assert "diagnostics" not in json.loads((attempt / "record.json").read_text())


def test_slips(attempt: Path, tmp_path: Path) -> None:
    error = run("oen", "--out", tmp_path).exception
    assert isinstance(error, UsageError)
    assert "unknown run 'oen'; did you mean one" in str(error)
