from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path
from unittest.mock import Mock

import pytest
from tests.cli.calls import BROKEN, PLUGINS, Call, refused


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        # unknown names
        (("--methods", "zeroqq"), ("unknown method 'zeroqq'", "did you mean zeroq?", "noise", "real")),
        (("--methods", "zeroq+distil"), ("unknown quantizer 'distil'", "did you mean distill?")),
        (("--methods", "zeroq+distill:warm"), ("unknown recipe of distill 'warm'", "valid: ", "gdfq")),
        (("--recipe", "nosuch"), ("unknown recipe of distill 'nosuch'", "valid: ", "gdfq")),
        (("--recipe", "nosuch:gdfq"), ("unknown quantizer 'nosuch'",)),
        (("--recipe", "gdfq", "--methods", "zeroq+calibrate"), ("'zeroq+calibrate' is a cross", "write zeroq alone")),
        (("--models", "resnet9"), ("unknown model 'resnet9'", "did you mean digits:resnet8?")),
        (("--models", "digits:resnet9"), ("unknown digits model 'resnet9'", "valid: mobilenet9, resnet8")),
        (("--models", "cifar:resnet21?weights=random"), ("unknown cifar model 'resnet21'", "did you mean resnet")),
        (("--models", "torchvison:resnet18"), ("unknown model family 'torchvison'", "did you mean torchvision")),
        (("--models", "digits:resnet8?weights=none.pt"), ("there is no weights file", "weights=random")),
        (("--models", "torchvision:resnet18"), ("no target is complete", "fetch torchvision:resnet18")),
        (("--models", "py:none.py:net"), ("there is no file", "correct the path")),
        (("--grid", "w4a5"), ("unknown grid 'w4a5'", "did you mean", "path of a .toml file")),
        (("--grid", "none.toml"), ("grid file none.toml cannot be read: no such file", "dfqbench grids list")),
        (("--on", "imagenett"), ("unknown target 'imagenett'", "did you mean imagenet?")),
        (("--on", "imagenet"), ("no evaluation set for 'imagenet'", "DIR/val/<wnid>/*.JPEG", "--data DIR")),
        (("--on", "cifar10"), ("no evaluation set for 'cifar10'", "dfqbench fetch cifar10")),
        (("--budget", "papr"), ("unknown budget 'papr'", "did you mean paper?")),
        # bits
        (("--bits", "w9a9"), ("9 bits for weights are not supported", "use 2 to 8, or 32 for off")),
        (("--bits", "w4a4@depoly"), ("unknown protocol 'depoly'", "did you mean deploy?")),
        # parameters
        (("--set", "zeroq.itertions=3"), ("unknown parameter of zeroq 'itertions'", "did you mean iterations?")),
        (("--set", "zerq.iterations=3"), ("unknown method or quantizer 'zerq'", "did you mean zeroq")),
        (("--set", "zeroq.iterations=many"), ("zeroq.iterations", "not 'many'", "`dfqbench methods show zeroq`")),
        (("--methods", "noise", "--set", "zeroq.lr=3"), ("--set zeroq.lr would change nothing", "leave it out")),
        # numbers, device, folders
        (("--seeds", "1-"), ("'1-' is not a seed", "write --seeds 0,1,2 or --seeds 0-4")),
        (("--limit", "0"), ("--limit 0 leaves no image", "give a number from 1")),
        (("--device", "gpu"), ("'gpu' is not a device", "cuda:0")),
        (("--retry", "fialed"), ("unknown argument of --retry 'fialed'", "did you mean failed?")),
        (("--time-limit", "soon"), ("--time-limit: 'soon' is not a time",)),
        (("--executor", "slurm"), ("unknown executor 'slurm'", "valid: inline, local")),
        (("--name", "../elsewhere"), ("'../elsewhere' is not the name of a run", "--out names the folder")),
        (("--out", f"{PLUGINS / 'flat.py'}"), ("flat.py is not a folder", "name another folder")),
        (("--data", "none"), ("there is no data folder", "name a folder with a targets.toml")),
        (("--data", f"{PLUGINS / 'flat.py'}"), ("flat.py is not a folder", "name the folder")),
        (("--data", f"{PLUGINS}"), ("holds no data that dfqbench knows", "it should have a targets.toml")),
        (("--plugin", "none.py"), ("plugin file none.py does not exist", "give the path of a Python file")),
        (("--plugin", f"{PLUGINS / 'README.md'}"), ("is not a .py file", "give the path of a Python file")),
    ],
)
def test_wrong_run_is_refused(call: Call, arguments: tuple[str, ...], parts: tuple[str, ...]) -> None:
    refused(call("run", *arguments), *parts)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("run", "--limit", "many"), "--limit"),
        (("run", "--grid"), "--grid"),
        (("run", "--jobs", "0"), "--jobs"),
        (("run", "--speed", "9"), "--speed"),
        (("rnu",), "rnu"),
        (("show",), "CELL"),
        (("doctor", "--images", "-1"), "--images"),
    ],
)
def test_malformed_command_line(call: Call, arguments: tuple[str, ...], part: str) -> None:
    output = call(*arguments)
    assert (output.status, output.out) == (2, "")
    assert part in output.err.splitlines()[-1]
    assert "Traceback" not in output.err


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("plan", "--methods", "zeroqq"), ("unknown method 'zeroqq'",)),
        (("methods", "show", "zeroqq"), ("unknown method or quantizer 'zeroqq'", "did you mean zeroq?", "real")),
        (("methods", "check", "zerq"), ("did you mean zeroq",)),
        (("methods", "new", "zeroq"), ("the name 'zeroq' is taken",)),
        (("methods", "new", "real"), ("the name 'real' is taken",)),
        (("methods", "new", "mine", "--kind", "image"), ("unknown kind 'image'", "did you mean images")),
        (("methods", "new", "Mine"), ("'Mine' cannot be the name of a method",)),
        (("methods", "new", "mine", "--into", "absent"), ("there is no folder absent",)),
        (("models", "show", "resnet8", "--on", "cifar"), ("unknown target 'cifar'",)),
        (("models", "list", "--data", f"{PLUGINS}"), ("holds no data",)),
        (("models", "show", "resnet9"), ("unknown model 'resnet9'", "did you mean digits:resnet8?")),
        (("grids", "show", "w4a5"), ("unknown grid 'w4a5'", "did you mean")),
        (("fetch", "cifar1000"), ("'cifar1000'", "valid: cifar10")),
        (("fetch", "imagenet"), ("allows no download", "put the images at DIR/val")),
        (("claims", "--method", "zerq"), ("unknown method 'zerq'; did you mean zeroq",)),
        (("claims", "--model", "resnet81"), ("unknown model 'resnet81'",)),
        (("claims", "--on", "cifar"), ("unknown dataset 'cifar'",)),
        (("claims", "--bits", "4"), ("'4' is no bit-width; write for example --bits w4a4",)),
        (("claims", "--format", "latex"), ("unknown format 'latex'",)),
        (("table", "--format", "pdf"), ("unknown format 'pdf'", "valid: csv")),
        (("table",), ("holds no run", "--out")),
        (("show", "abc"), ("holds no run", "--out")),
    ],
)
def test_wrong_request_of_another_verb(call: Call, arguments: tuple[str, ...], parts: tuple[str, ...]) -> None:
    refused(call(*arguments), *parts)


def test_ctrl_c_exits_with_130_and_a_defect_keeps_its_traceback(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dfqbench.cli.run.planned", Mock(side_effect=[KeyboardInterrupt, ZeroDivisionError("ours")]))
    output = call("run", "--grid", "smoke")
    assert output.status == 130
    assert output.err == "dfqbench: stopped; what was finished is kept, and the same command goes on from there\n"
    with pytest.raises(ZeroDivisionError, match="ours"):
        call("run", "--grid", "smoke")


def test_installed_script_returns_the_status(tmp_path: Path) -> None:
    script = Path(sysconfig.get_path("scripts")) / "dfqbench"
    if not script.is_file():
        pytest.skip("dfqbench is not installed with its script")

    def status(*arguments: str) -> tuple[int, str]:
        done = subprocess.run(
            [script, *arguments], capture_output=True, text=True, cwd=tmp_path, timeout=60, check=False
        )
        return done.returncode, done.stderr

    assert status("grids", "list") == (0, "")
    code, message = status("run", "--methods", "zeroqq")
    assert code == 2
    assert message.startswith("dfqbench: error: unknown method 'zeroqq'")
    assert message.count("\n") == 1
    assert status("methods", "show", "raises_on_import", "--plugin", str(BROKEN))[0] == 1


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("schemes = [", ("is not valid TOML: invalid value", "correct the file")),
        ("schemes = ['w4a4']\nseeds = ['a']", ("key 'seeds.0'", "not 'a'", "seeds = [0, 1, 2]")),
        ("schemes = ['w4a4@m']\n[protocols.m]\nplacement = 'x'", ("key 'placement'", "not 'x'", "correct the value")),
    ],
)
def test_broken_grid_file(call: Call, tmp_path: Path, text: str, parts: tuple[str, ...]) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    assert str(path) in refused(call("run", "--grid", path), *parts)


def test_ray_executor_without_ray_says_how_to_install_it(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setitem(sys.modules, "ray", None)
    refused(call("run", "--executor", "ray"), "--executor ray needs Ray", "pip install 'dfqbench[ray]'")
