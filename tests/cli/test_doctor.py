from __future__ import annotations

import json
from pathlib import Path

import typer
from typer.testing import CliRunner

from dfqbench.cli import doctor


def invoke(*arguments: str) -> tuple[int, str]:
    app = typer.Typer()
    doctor.register(app)
    app.callback()(lambda: None)
    done = CliRunner().invoke(app, ["doctor", *arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout


def findings(*arguments: str) -> tuple[int, dict[str, tuple[str, str]]]:
    code, out = invoke("--json", *arguments)
    return code, {row["what"]: (row["status"], row["detail"]) for row in json.loads(out)}


def test_a_sound_environment() -> None:
    code, found = findings("--images", "100")
    assert code == 0
    assert found["python"][0] == found["torch"][0] == found["cpu"][0] == "ok"
    assert "540 images, 10 of 10 classes" in found["digits"][1]
    assert found["digits digits:resnet8"][0] == "ok"
    assert "99.26 is given" in found["digits digits:resnet8"][1]
    assert found["cifar10"][0] == "missing"
    code, text = invoke("--images", "0")
    assert code == 0
    assert "540 images" in text


def test_broken_folders_and_plugins_are_rows(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    plugin = tmp_path / "bad_plugin.py"
    plugin.write_text("raise RuntimeError('no luck')\n")
    code, found = findings("--images", "0", "--data", str(empty), "--plugin", str(plugin))
    assert code == 1
    assert found["data folder"][0] == "broken"
    assert "holds no data" in found["data folder"][1]
    assert found["plugin bad_plugin"][0] == "broken"
    assert "no luck" in found["plugin bad_plugin"][1]
    assert found["digits"][0] == "ok"


def test_weights_that_do_not_match_their_card_are_found(real_data: Path, tmp_path: Path) -> None:
    (tmp_path / "weights").symlink_to(real_data / "weights")
    (tmp_path / "targets.toml").write_text(
        f'[datasets.cifar10]\nkind = "npz"\nevaluate = "{real_data}/cifar10/test.npz"\nclasses = 10\n'
        '[[models]]\ntarget = "cifar10"\nname = "cifar:resnet20"\n'
        'weights = "weights/cifar10-resnet20.safetensors"\nmean = [0.0, 0.0, 0.0]\nstd = [0.05, 0.05, 0.05]\n'
        "top1 = 91.73\n"
    )
    code, found = findings("--images", "100", "--data", str(tmp_path))
    assert code == 1
    status, detail = found["cifar10 cifar:resnet20"]
    assert status == "broken"
    assert "but 91.73 is given beside the weights" in detail
