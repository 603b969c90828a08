from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.cli.calls import BROKEN, CONTROL, Call, refused

from dfqbench.targets.catalogue import DIGITS_WEIGHTS

MANIFEST = """
[datasets.toy]
kind = "npz"
evaluate = "images.npz"
classes = 10
default_budget = "smoke"

[[models]]
target = "toy"
name = "digits:resnet8"
weights = "weights.safetensors"
input_size = [1, 8, 8]
mean = [0.3]
std = [0.4]
"""


def records(out: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in out.glob("*/cells/*/attempt-*/record.json")]


def data_folder(folder: Path, manifest: str = MANIFEST, labels: int = 10) -> Path:
    """A data folder with 20 images, the digits' weights, and a manifest."""
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (20, 8, 8, 1), dtype=np.uint8)
    np.savez(folder / "images.npz", x=pixels, y=np.arange(20) % labels)
    shutil.copy(DIGITS_WEIGHTS, folder / "weights.safetensors")
    (folder / "targets.toml").write_text(manifest)
    return folder


@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        ('target = "toy"', "[[", ("is not valid TOML", "correct the file at that place")),
        ("weights =", "weigths =", ("models[0]: unknown key 'weigths'", "did you mean weights?")),
        ('target = "toy"\n', "", ("models[0]: 'target' is missing", "add it")),
        ("classes = 10", "classes = '10'", ("datasets.toy: classes: input should be a valid integer", "correct")),
        ('"npz"', '"zip"', ("datasets.toy: kind: input should be 'npz', 'imagenet-folder' or", "correct")),
        ("std = [0.4]", "std = [0.0]", ("model 'digits:resnet8': std must be positive", "correct")),
        ("std = [0.4]", "std = [0.4, 1]", ("std has 2 values for 1 channels", "give one a channel")),
        ('"images.npz"', '"../images.npz"', ("evaluate", "leaves the manifest's folder", "without '..'")),
        ('"weights.safe', '"/weights.safe', ("weights", "is absolute", "relative to the manifest")),
        ('"images.npz"', '"other.npz"', ("there is no file", "correct the path, or put the data there")),
        ('"digits:resnet8"', '"digits:resnet9"', ("unknown digits model 'resnet9'", "valid: mobilenet9, resnet8")),
    ],
)
def test_broken_manifest(call: Call, tmp_path: Path, old: str, new: str, parts: tuple[str, ...]) -> None:
    folder = data_folder(tmp_path / "data", MANIFEST.replace(old, new))
    line = refused(call(*CONTROL, "--data", folder), *parts)
    assert str(folder / "targets.toml") in line


def test_empty_data_folder(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.setenv("DFQBENCH_DATA", str(empty))
    refused(call("plan"), f"{empty} holds no data", "it should have a targets.toml")


def test_imagenet_folder_with_an_unknown_class(call: Call, tmp_path: Path) -> None:
    (tmp_path / "val" / "n99999999").mkdir(parents=True)
    line = refused(call(*CONTROL, "--data", tmp_path), "n99999999 is none of the 1,000 classes", "take it out")
    assert str(tmp_path / "val") in line


def test_target_without_models(call: Call, tmp_path: Path) -> None:
    folder = data_folder(tmp_path / "data", MANIFEST.partition("[[models]]")[0])
    refused(call(*CONTROL, "--data", folder, "--on", "toy"), "no model is there for toy", "name one", "targets.toml")


class Code(NamedTuple):
    """An object whose unpickling makes a folder."""

    mark: Path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.mark),)


@pytest.mark.slow
def test_faulty_weights_and_images_are_rows(tmp_path: Path) -> None:
    folder = data_folder(tmp_path / "data", labels=20)
    mark = tmp_path / "mark"
    torch.save({"conv1.weight": Code(mark)}, folder / "saved.pt")
    (folder / "plain.pt").write_bytes(pickle.dumps(Code(mark)))
    state = load_file(folder / "weights.safetensors")
    save_file(state | {"conv1.weight": state["conv1.weight"][:, :, :1].contiguous()}, folder / "narrow.safetensors")
    (folder / "damaged.safetensors").write_bytes(b"damaged")
    (folder / "elsewhere.npz").write_bytes(b"damaged")
    head, _, model = MANIFEST.partition("[[models]]")
    manifest = MANIFEST + head.replace("toy", "twelve").replace("10", "12").replace("images.npz", "elsewhere.npz")
    for name in ("saved.pt", "plain.pt", "narrow.safetensors", "damaged.safetensors"):
        changed = model.replace('name = "digits:resnet8"', f'name = "{name}"\nref = "digits:resnet8"')
        manifest += f"[[models]]{changed}".replace("weights.safetensors", name).replace("toy", "digits")
    for classes, name in ((12, "fits"), (10, "other-classes")):
        changed = model.replace('"digits:resnet8"', f'"{name}"\nref = "digits:resnet8"\nclasses = {classes}')
        changed = changed.replace('weights = "weights.safetensors"', "random_seed = 0")
        manifest += f"[[models]]{changed}".replace("toy", "twelve")
    (folder / "targets.toml").write_text(manifest)

    grid = 'name = "smoke"\nmethods = ["noise"]\nschemes = ["w4a4"]\nbudget = "smoke"\n'
    (tmp_path / "grid.toml").write_text(grid)
    places = ["--grid", "grid.toml", "--on", "digits,toy,twelve", "--data", "data", "--out", "out"]
    places += ["--executor", "inline"]
    env = os.environ | {"XDG_DATA_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-m", "dfqbench", "run", *places]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    rows = {f"{record['target']}/{record['model']['name']}": record for record in records(tmp_path / "out")}
    for good in ("resnet8", "mobilenet9"):
        assert rows.pop(f"digits/digits:{good}")["status"] == "ok"
    expected = {
        "digits/saved.pt": ("holds more than tensors, so loading it could run code", "save the weights alone"),
        "digits/plain.pt": ("holds more than tensors, so loading it could run code", "save the weights alone"),
        "digits/narrow.safetensors": ("conv1.weight is 16x1x1x3, not 16x1x3x3", "check the architecture"),
        "digits/damaged.safetensors": ("damaged.safetensors is not a safetensors file", "copy or fetch it again"),
        "toy/digits:resnet8": ("label 19 is outside 0..9", "correct classes of 'toy' in targets.toml"),
        "twelve/fits": ("elsewhere.npz is not a readable .npz", "copy or fetch it again"),
        "twelve/other-classes": ("'twelve' has 12 classes, the model gives 10", "correct classes in targets.toml"),
    }
    assert set(rows) == set(expected)
    for place, parts in expected.items():
        message = rows[place]["error"]["message"]
        assert (rows[place]["status"], message.count("\n")) == ("failed", 0)
        assert all(part in message and part in done.stderr for part in parts), message
    assert not mark.exists(), "code in a checkpoint was run"
    assert not list((tmp_path / "out").rglob("*.part"))


def test_missing_weights_are_a_row(call: Call, tmp_path: Path) -> None:
    folder = data_folder(tmp_path / "data")
    (folder / "weights.safetensors").unlink()
    output = call(*CONTROL, "--on", "toy", "--data", folder, "--out", tmp_path / "out")
    assert output.status == 1
    assert "no cell could be run" in output.err
    (record,) = records(tmp_path / "out")
    assert record["status"] == "unavailable"
    assert record["error"]["message"].endswith("is missing; put it there or take the model out")
    assert "is missing; put it there" in " ".join(output.out.split()), "where lines end depends on the path"


def test_plugin_that_raises_on_import_is_a_row(call: Call, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ("run", "--grid", "smoke", "--methods", "raises_on_import", "--plugin", BROKEN, "--out", out)
    output = call(*arguments)
    assert output.status == 1
    assert "Traceback" not in output.err + output.out
    (record,) = records(out)
    assert record["status"] == "failed"
    assert "did not load: ModuleNotFoundError" in record["error"]["message"]
    hint = f"`dfqbench methods show raises_on_import --plugin {BROKEN}` prints its traceback"
    assert hint in record["error"]["message"]
    assert hint in output.err
    shown = call("methods", "show", "raises_on_import", "--plugin", BROKEN)
    assert shown.status == 1
    assert "Traceback (most recent call last)" in shown.err
