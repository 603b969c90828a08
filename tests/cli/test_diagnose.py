from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tests.cli.calls import Call, refused, write_record

from dfqbench.targets.catalogue import Catalogue


@pytest.fixture
def attempt(tmp_path: Path) -> Path:
    """An attempt on the embedded target, with noise for images."""
    folder = write_record(tmp_path, "one", "aaa", label="zeroq", seconds={"synthesis": 6.4}, source_images=64)
    model = Catalogue.discover([]).models("digits", ())[0]
    (folder / "student.json").write_text(json.dumps({"model": model.as_dict()}))  # type: ignore[union-attr]
    images = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    save_file({"images": images, "labels": torch.arange(64) % 10}, folder / "images.safetensors")
    return folder


def test_measurements_go_into_the_record(call: Call, attempt: Path, tmp_path: Path) -> None:
    before = json.loads((attempt / "record.json").read_text())
    output = call("diagnose", "one", "--out", tmp_path)
    assert output.status == 0, output
    after = json.loads((attempt / "record.json").read_text())
    diagnostics = after.pop("diagnostics")
    assert after == before
    assert diagnostics["images"] == 64
    assert 0 <= diagnostics["label_accuracy"] <= 100
    assert f"{diagnostics['bns']:.3f}" in output.out
    assert "1 cells diagnosed, 0 before" in output.err
    assert "0 cells diagnosed, 1 before" in call("diagnose", "one", "--out", tmp_path).err
    assert "1 cells diagnosed, 0 before" in call("diagnose", "one", "--out", tmp_path, "--again").err


def test_code_named_by_a_folder_is_not_run(call: Call, attempt: Path, tmp_path: Path) -> None:
    hostile = tmp_path / "hostile.py"
    hostile.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\ndef net(): ...\n")
    description = json.loads((attempt / "student.json").read_text())
    description["model"] |= {"ref": f"py:{hostile}:net", "trusted": True, "weights": None, "random_seed": 0}
    (attempt / "student.json").write_text(json.dumps(description))
    output = call("diagnose", "one", "--out", tmp_path)
    assert output.status == 1
    assert "not diagnosed: zeroq aaa:" in output.err
    assert not (tmp_path / "ran").exists()


def test_missing_images_are_a_problem(call: Call, attempt: Path, tmp_path: Path) -> None:
    (attempt / "images.safetensors").unlink()
    output = call("diagnose", "one", "--out", tmp_path)
    assert output.status == 1
    assert "images.safetensors is missing; the attempt kept no images; run its cell again" in output.err
    assert "diagnostics" not in json.loads((attempt / "record.json").read_text())


def test_record_that_cannot_be_written_as_json_is_a_problem(call: Call, attempt: Path, tmp_path: Path) -> None:
    data = json.loads((attempt / "record.json").read_text())
    (attempt / "record.json").write_text(json.dumps(data | {"top5": float("nan")}))
    output = call("diagnose", "one", "--out", tmp_path)
    assert output.status == 1
    assert "not diagnosed: zeroq aaa: its record cannot be written: Out of range float values" in output.err
    assert "Traceback" not in output.err


def test_unknown_run(call: Call, attempt: Path, tmp_path: Path) -> None:
    refused(call("diagnose", "oen", "--out", tmp_path), "unknown run 'oen'; did you mean one")
