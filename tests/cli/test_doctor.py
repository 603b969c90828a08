from __future__ import annotations

import json
from pathlib import Path

from tests.cli.calls import Call


def findings(call: Call, *arguments: str | Path) -> tuple[int, dict[str, tuple[str, str]]]:
    output = call("doctor", "--json", *arguments)
    return output.status, {row["what"]: (row["status"], row["detail"]) for row in json.loads(output.out)}


def test_working_environment(call: Call) -> None:
    status, rows = findings(call, "--images", "100")
    assert status == 0
    assert rows["python"][0] == rows["torch"][0] == rows["cpu"][0] == "ok"
    assert "540 images, 10 of 10 classes" in rows["digits"][1]
    word, detail = rows["digits digits:resnet8"]
    assert (word, "99.26 is given" in detail, rows["cifar10"][0]) == ("ok", True, "missing")
    text = call("doctor", "--images", "0")
    assert (text.status, "540 images" in text.out) == (0, True)


def test_broken_folders_and_plugins_are_rows(call: Call, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    plugin = tmp_path / "bad_plugin.py"
    plugin.write_text("raise RuntimeError('no luck')\n")
    status, rows = findings(call, "--images", "0", "--data", empty, "--plugin", plugin)
    assert status == 1
    assert rows["data folder"][0] == rows["plugin bad_plugin"][0] == "broken"
    assert "holds no data" in rows["data folder"][1]
    assert "no luck" in rows["plugin bad_plugin"][1]
    assert rows["digits"][0] == "ok"


def test_weights_that_do_not_match_their_card_are_broken(call: Call, real_data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "weights").symlink_to(real_data / "weights")
    (folder / "targets.toml").write_text(
        f'[datasets.cifar10]\nkind = "npz"\nevaluate = "{real_data}/cifar10/test.npz"\nclasses = 10\n'
        '[[models]]\ntarget = "cifar10"\nname = "cifar:resnet20"\n'
        'weights = "weights/cifar10-resnet20.safetensors"\nmean = [0.0, 0.0, 0.0]\nstd = [0.05, 0.05, 0.05]\n'
        "top1 = 91.73\n"
    )
    status, rows = findings(call, "--images", "100", "--data", folder)
    assert status == 1
    word, detail = rows["cifar10 cifar:resnet20"]
    assert (word, "but 91.73 is given beside the weights" in detail) == ("broken", True)
