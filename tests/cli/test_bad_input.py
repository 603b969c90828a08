"""Bad input through the command line: one line that says what to do, a status, and nothing half-written."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from dfqbench.cli.main import main
from dfqbench.targets.catalogue import DIGITS_WEIGHTS

PLUGINS = Path(__file__).parents[1] / "plugins"
BROKEN = PLUGINS / "broken" / "raises_on_import.py"
CONTROL = ("run", "--grid", "smoke", "--methods", "noise")

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


@dataclass(frozen=True)
class Said:
    """What a call of the command line answered."""

    status: int
    out: str
    err: str


Call = Callable[..., Said]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Call:
    """Calls `dfqbench` in this process, in an empty folder and without the user's own data folder."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def run(*arguments: str | Path) -> Said:
        monkeypatch.setattr(sys, "argv", ["dfqbench", *map(str, arguments)])
        capsys.readouterr()
        status = main()
        captured = capsys.readouterr()
        return Said(status, captured.out, captured.err)

    return run


def refused(said: Said, *parts: str) -> str:
    """Checks that a request was refused in one line before anything was written; returns the line."""
    assert said.status == 2, said
    assert said.out == ""
    (line,) = said.err.splitlines()
    assert line.startswith("dfqbench: error: ")
    for part in parts:
        assert part in line, line
    assert "; " in line, f"it does not say what to do: {line}"
    assert list(Path().iterdir()) == [], "something was written"
    return line


def records(out: Path) -> dict[str, dict[str, Any]]:
    """Records of a results folder by target and model."""
    found = (json.loads(path.read_text()) for path in out.glob("*/cells/*/attempt-*/record.json"))
    return {f"{record['target']}/{record['model']['name']}": record for record in found}


def data_folder(folder: Path, manifest: str = MANIFEST, labels: int = 10) -> Path:
    """A data folder with 20 images, the digits' weights, and a manifest."""
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 255, (20, 8, 8, 1), dtype=np.uint8)
    np.savez(folder / "images.npz", x=pixels, y=np.arange(20) % labels)
    shutil.copy(DIGITS_WEIGHTS, folder / "weights.safetensors")
    (folder / "targets.toml").write_text(manifest)
    return folder


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        # unknown names
        (("--methods", "zeroqq"), ("unknown method 'zeroqq'", "did you mean zeroq?", "noise", "real")),
        (("--methods", "zeroq+distil"), ("unknown quantizer 'distil'", "did you mean distill?")),
        (("--methods", "zeroq+distill:warm"), ("unknown recipe of distill 'warm'", "valid: ", "gdfq")),
        (("--methods", "zero q"), ("'zero q' is not a method choice", "write method")),
        (("--methods", ""), ("no method is named", "write for example --methods")),
        (("--models", "resnet9"), ("unknown model 'resnet9'", "did you mean digits:resnet8?")),
        (("--models", "digits:resnet9"), ("unknown digits model 'resnet9'", "valid: resnet8")),
        (("--models", "cifar:resnet21?weights=random"), ("unknown cifar model 'resnet21'", "did you mean resnet")),
        (("--models", "torchvison:resnet18"), ("unknown model family 'torchvison'", "did you mean torchvision")),
        (("--models", "digits:resnet8?weights=none.pt"), ("there is no weights file", "weights=random")),
        (("--models", "py:none.py:net"), ("there is no file", "correct the path")),
        (("--grid", "w4a5"), ("unknown grid 'w4a5'", "did you mean", "path of a .toml file")),
        (("--grid", "none.toml"), ("grid file none.toml cannot be read: no such file", "dfqbench grids list")),
        (("--on", "imagenett"), ("unknown target 'imagenett'", "did you mean imagenet?")),
        (("--on", "imagenet"), ("no evaluation set for 'imagenet'", "DIR/val/<wnid>/*.JPEG", "--data DIR")),
        (("--on", "cifar10"), ("no evaluation set for 'cifar10'", "dfqbench fetch cifar10")),
        (("--on", ","), ("--on names nothing", "write for example --on cifar10,digits")),
        (("--budget", "papr"), ("unknown budget 'papr'", "did you mean paper?")),
        # bits
        (("--bits", "w9a9"), ("9 bits for weights are not supported", "use 2 to 8, or 32 for off")),
        (("--bits", "w4a1"), ("1 bits for activations are not supported", "use 2 to 8")),
        (("--bits", "4"), ("'4' is not a scheme", "for example w4a4")),
        (("--bits", "w4a4@depoly"), ("unknown protocol 'depoly'", "did you mean deploy?")),
        (("--bits", ","), ("--bits names nothing", "write for example --bits w4a4")),
        # parameters
        (("--set", "zeroq.itertions=3"), ("unknown parameter of zeroq 'itertions'", "did you mean iterations?")),
        (("--set", "zerq.iterations=3"), ("unknown method or quantizer 'zerq'", "did you mean zeroq")),
        (("--set", "zeroq.iterations=many"), ("zeroq.iterations", "not 'many'", "`dfqbench methods show zeroq`")),
        (("--set", "zeroq.iterations=-1"), ("zeroq.iterations", "greater than 0, not '-1'", "methods show zeroq")),
        (("--set", "zeroq.lr=nan"), ("zeroq.lr", "'nan'", "methods show zeroq")),
        (("--set", "zeroq.iterations"), ("--set zeroq.iterations has no value", "zeroq.iterations=100")),
        (("--set", "iterations=3"), ("'iterations' is not a parameter", "write method.parameter")),
        (
            ("--methods", "noise", "--set", "zeroq.iterations=3"),
            ("--set zeroq.iterations would change nothing", "leave it out"),
        ),
        # numbers, device, folders
        (("--seeds", "1-"), ("'1-' is not a seed", "write --seeds 0,1,2 or --seeds 0-4")),
        (("--seeds", "-1"), ("'-1' is not a seed", "write --seeds")),
        (("--seeds", "4-0"), ("'4-0' is not a range of seeds", "low-high")),
        (("--seeds", "0-99999"), ("at most 1000 seeds",)),
        (("--seeds", ","), ("--seeds names nothing", "0-4")),
        (("--limit", "0"), ("--limit 0 leaves no image", "give a number from 1")),
        (("--device", "gpu"), ("'gpu' is not a device", "cuda:0")),
        (("--name", "../elsewhere"), ("'../elsewhere' is not the name of a run", "--out names the folder")),
        (("--out", f"{PLUGINS / 'flat.py'}"), ("flat.py is not a folder", "name another folder")),
        (("--data", "none"), ("there is no data folder", "name a folder with a targets.toml")),
        (("--data", f"{PLUGINS / 'flat.py'}"), ("flat.py is not a folder", "name the folder")),
        (("--data", f"{PLUGINS}"), ("holds no data that dfqbench knows", "it should have a targets.toml")),
        (("--plugin", "none.py"), ("plugin file none.py does not exist", "give the path of a Python file")),
        (("--plugin", f"{PLUGINS / 'README.md'}"), ("is not a .py file", "give the path of a Python file")),
    ],
)
def test_a_wrong_request_is_refused(call: Call, arguments: tuple[str, ...], parts: tuple[str, ...]) -> None:
    refused(call("run", *arguments), *parts)
    refused(call("run", "--grid", "smoke", *arguments), *parts)


def test_a_network_without_weights(call: Call) -> None:
    refused(call("run", "--models", "torchvision:resnet18"), "no target is complete", "fetch torchvision:resnet18")


def test_plan_refuses_alike(call: Call) -> None:
    refused(call("plan", "--methods", "zeroqq"), "unknown method 'zeroqq'")
    refused(call("plan", "--device", "gpu"), "'gpu' is not a device")


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("run", "--limit", "many"), "--limit"),
        (("run", "--grid"), "--grid"),
        (("run", "--speed", "9"), "--speed"),
        (("rnu",), "rnu"),
        (("show",), "CELL"),
        (("doctor", "--images", "-1"), "--images"),
    ],
)
def test_a_malformed_command_line(call: Call, arguments: tuple[str, ...], part: str) -> None:
    said = call(*arguments)
    assert said.status == 2
    assert said.out == ""
    assert part in said.err.splitlines()[-1]
    assert "Traceback" not in said.err


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("methods", "show", "zeroqq"), ("unknown method or quantizer 'zeroqq'", "did you mean zeroq?", "real")),
        (("models", "show", "resnet9"), ("unknown model 'resnet9'", "did you mean digits:resnet8?")),
        (("grids", "show", "w4a5"), ("unknown grid 'w4a5'", "did you mean")),
        (("fetch", "cifar1000"), ("'cifar1000'", "valid: cifar10")),
        (("fetch", "imagenet"), ("allows no download", "put the images at DIR/val")),
        (("table", "--format", "pdf"), ("unknown format 'pdf'", "valid: csv")),
        (("table",), ("holds no run", "--out")),
        (("show", "abc"), ("holds no run", "--out")),
    ],
)
def test_the_other_verbs(call: Call, arguments: tuple[str, ...], parts: tuple[str, ...]) -> None:
    refused(call(*arguments), *parts)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("schemes = [", ("is not valid TOML: invalid value", "correct the file")),
        ("title = 'x'", ("key 'schemes' is missing", 'schemes = ["w4a4"')),
        ("schemes = []", ("key 'schemes' is empty", 'schemes = ["w4a4"')),
        ("schemes = 'w4a4'", ("key 'schemes'", 'schemes = ["w4a4"')),
        ("schemes = ['w4a4']\nmethod = ['noise']", ("unknown key 'method'", "did you mean methods?")),
        ("schemes = ['w9a9']", ("9 bits for weights are not supported", "use 2 to 8")),
        ("schemes = ['w4a4']\nmethods = ['no such']", ("'no such' is not a method choice", "write method")),
        ("schemes = ['w4a4']\nseeds = ['a']", ("key 'seeds.0'", "not 'a'", "seeds = [0, 1, 2]")),
        ("schemes = ['w4a4']\nmodels = ['a']", ("key 'models'", "[models]")),
        ("schemes = ['w4a4']\nbudget = 'long'", ("unknown budget 'long'", "valid: medium")),
        ("schemes = ['w4a4']\nname = '../x'", ("key 'name'", 'name = "mygrid"')),
        ("schemes = ['w4a4@m']\n[protocols.m]\nplacement = 'x'", ("key 'placement'", "not 'x'", "correct the value")),
        ("schemes = ['w4a4@m']\n[protocols]\nm = 3", ("key 'protocols.m'", "not 3")),
    ],
)
def test_a_broken_grid_file(call: Call, tmp_path: Path, text: str, parts: tuple[str, ...]) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    assert str(path) in refused(call("run", "--grid", path), *parts)


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
        (
            '"images.npz"',
            '"../images.npz"',
            ("dataset 'toy': evaluate", "leaves the manifest's folder", "without '..'"),
        ),
        ('"weights.safe', '"../weights.safe', ("weights", "leaves the manifest's folder", "without '..'")),
        ('"weights.safe', '"/weights.safe', ("weights", "is absolute", "relative to the manifest")),
        ('"images.npz"', '"other.npz"', ("there is no file", "correct the path, or put the data there")),
        ('"digits:resnet8"', '"digits:resnet9"', ("unknown digits model 'resnet9'", "valid: resnet8")),
    ],
)
def test_a_broken_manifest(call: Call, tmp_path: Path, old: str, new: str, parts: tuple[str, ...]) -> None:
    folder = data_folder(tmp_path / "data", MANIFEST.replace(old, new))
    line = refused(call(*CONTROL, "--data", folder), *parts)
    assert str(folder / "targets.toml") in line


def test_an_empty_data_folder(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    refused(call(*CONTROL, "--data", empty), f"{empty} holds no data", "it should have a targets.toml")
    monkeypatch.setenv("DFQBENCH_DATA", str(empty))
    refused(call("plan"), f"{empty} holds no data", "it should have a targets.toml")


def test_an_imagenet_folder_with_another_class(call: Call, tmp_path: Path) -> None:
    (tmp_path / "val" / "n99999999").mkdir(parents=True)
    line = refused(call(*CONTROL, "--data", tmp_path), "n99999999 is none of the 1,000 classes", "take it out")
    assert str(tmp_path / "val") in line


def test_a_target_without_models(call: Call, tmp_path: Path) -> None:
    folder = data_folder(tmp_path / "data", MANIFEST.partition("[[models]]")[0])
    refused(call(*CONTROL, "--data", folder, "--on", "toy"), "no model is there for toy", "name one", "targets.toml")


class _Code:
    """Pickles as a call that leaves a mark."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self._mark),)


def test_what_only_shows_when_it_is_opened_is_a_row(tmp_path: Path) -> None:
    folder = data_folder(tmp_path / "data", labels=20)
    mark = tmp_path / "mark"
    torch.save({"conv1.weight": _Code(mark)}, folder / "saved.pt")
    (folder / "plain.pt").write_bytes(pickle.dumps(_Code(mark)))
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

    done = subprocess.run(
        [sys.executable, "-m", "dfqbench", *CONTROL, "--on", "digits,toy,twelve", "--data", folder, "--out", "out"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "XDG_DATA_HOME": str(tmp_path / "home")},
        timeout=280,
        check=False,
    )
    said = Said(done.returncode, done.stdout, done.stderr)

    assert said.status == 1, said.err
    assert "Traceback" not in said.err + said.out
    found = records(tmp_path / "out")
    assert found.pop("digits/digits:resnet8")["status"] == "ok"
    wanted = {
        "digits/saved.pt": ("holds more than tensors, so loading it could run code", "save the weights alone"),
        "digits/plain.pt": ("holds more than tensors, so loading it could run code", "save the weights alone"),
        "digits/narrow.safetensors": ("conv1.weight is 16x1x1x3, not 16x1x3x3", "check the architecture"),
        "digits/damaged.safetensors": ("damaged.safetensors is not a safetensors file", "copy or fetch it again"),
        "toy/digits:resnet8": ("label 19 is outside 0..9", "correct classes of 'toy' in targets.toml"),
        "twelve/fits": ("elsewhere.npz is not a readable .npz", "copy or fetch it again"),
        "twelve/other-classes": ("'twelve' has 12 classes, the model gives 10", "correct classes in targets.toml"),
    }
    assert set(found) == set(wanted)
    for place, parts in wanted.items():
        message = found[place]["error"]["message"]
        assert found[place]["status"] == "failed"
        assert "\n" not in message
        for part in parts:
            assert part in message, message
            assert part in said.err
    assert not mark.exists(), "code in a checkpoint was run"
    assert not list((tmp_path / "out").rglob("*.part"))


def test_weights_that_are_missing_are_a_row(call: Call, tmp_path: Path) -> None:
    folder = data_folder(tmp_path / "data")
    (folder / "weights.safetensors").unlink()
    said = call(*CONTROL, "--on", "toy", "--data", folder, "--out", tmp_path / "out")
    assert said.status == 1
    assert "no cell could be run" in said.err
    (record,) = records(tmp_path / "out").values()
    assert record["status"] == "unavailable"
    assert record["error"]["message"].endswith("is missing; put it there or take the model out")
    assert "is missing; put it there" in said.out


def test_a_plugin_that_raises_on_import_is_a_row(call: Call, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ("run", "--grid", "smoke", "--methods", "raises_on_import", "--plugin", BROKEN, "--out", out)
    said = call(*arguments)
    assert said.status == 1
    assert "Traceback" not in said.err + said.out
    (record,) = records(out).values()
    assert record["status"] == "failed"
    assert "did not load: ModuleNotFoundError" in record["error"]["message"]
    hint = f"`dfqbench methods show raises_on_import --plugin {BROKEN}` prints its traceback"
    assert hint in record["error"]["message"]
    assert hint in said.err
    shown = call("methods", "show", "raises_on_import", "--plugin", BROKEN)
    assert shown.status == 1
    assert "Traceback (most recent call last)" in shown.err
    listed = call("methods", "list", "--plugin", BROKEN)
    assert listed.status == 0
    assert "raises_on_import" in listed.out


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\x00", b'{"status": "ok"}'])
def test_a_corrupt_record(call: Call, tmp_path: Path, content: bytes) -> None:
    out = tmp_path / "out"
    arguments = ("run", "--grid", "smoke", "--methods", "raises_on_import", "--plugin", BROKEN, "--out", out)
    call(*arguments)
    (path,) = out.glob("smoke/cells/*/attempt-1/record.json")
    path.write_bytes(content)

    table = call("table", "--out", out)
    assert table.status == 0
    (line,) = table.err.splitlines()
    assert line.startswith(f"dfqbench: warning: {path} is not a readable record")
    assert "delete its folder to run it again" in line
    assert call("plan", "--grid", "smoke", "--out", out).status == 0

    again = call(*arguments)
    assert again.status == 1
    assert "Traceback" not in again.err
    assert path.read_bytes() == content
    assert json.loads((path.parents[1] / "attempt-2" / "record.json").read_text())["status"] == "failed"


def test_show_of_a_corrupt_record(call: Call, tmp_path: Path) -> None:
    attempt = tmp_path / "out" / "mine" / "cells" / "abcd" / "attempt-1"
    attempt.mkdir(parents=True)
    (attempt / "record.json").write_text("{")
    refused(call("show", "abcd", "--out", tmp_path / "out"), f"record {attempt / 'record.json'} cannot be read", "run")
    refused(call("show", "ef", "--out", tmp_path / "out"), "no cell begins with 'ef'", "dfqbench table")


def test_ctrl_c_says_that_nothing_is_lost(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dfqbench.cli.run.planned", stopped)
    said = call("run")
    assert said.status == 130
    assert said.err == "dfqbench: stopped; what was finished is kept, and the same command goes on from there\n"


def test_a_defect_keeps_its_traceback(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def defective(_: object) -> None:
        raise ZeroDivisionError("ours")

    monkeypatch.setattr("dfqbench.cli.run.planned", defective)
    with pytest.raises(ZeroDivisionError, match="ours"):
        call("run")


def test_the_installed_script_hands_the_status_on(tmp_path: Path) -> None:
    script = Path(sysconfig.get_path("scripts")) / "dfqbench"
    if not script.is_file():
        pytest.skip("dfqbench is not installed with its script")

    def status(*arguments: str) -> tuple[int, str]:
        done = subprocess.run(
            [script, *arguments], capture_output=True, text=True, cwd=tmp_path, timeout=60, check=False
        )
        return done.returncode, done.stderr

    assert status("--help") == (0, "")
    assert status("grids", "list") == (0, "")
    assert status("run", "--grid", "w4a5")[0] == 2
    code, said = status("run", "--methods", "zeroqq")
    assert code == 2
    assert said.startswith("dfqbench: error: unknown method 'zeroqq'")
    assert said.count("\n") == 1
    assert status("methods", "show", "raises_on_import", "--plugin", str(BROKEN))[0] == 1


@pytest.mark.parametrize("verbs", [(), ("methods",), ("models",), ("grids",)])
def test_every_line_of_the_help_is_whole(call: Call, verbs: tuple[str, ...]) -> None:
    said = call(*verbs, "--help")
    assert said.status == 0
    commands = said.out.partition("Commands:")[2].splitlines()
    assert len(commands) > 2
    assert not [line for line in commands if line.endswith("...")]
