from __future__ import annotations

import json

import pytest
from tests.cli.calls import PLUGINS, Call


def plugin(*names: str) -> list[str]:
    return [word for name in names for word in ("--plugin", str(PLUGINS / f"{name}.py"))]


def test_list_json(call: Call) -> None:
    plugins = plugin("flat", "broken/raises_on_import", "broken/unresolved_load")
    rows = {row["name"]: row for row in call("methods", "list", "--json", *plugins).json}
    assert all({"name", "title", "origin", "version", "status"} <= set(row) for row in rows.values())
    zeroq = {"status": "ok", "origin": "dfqbench", "quantizer": "calibrate", "control": False}
    assert rows["zeroq"].items() >= zeroq.items()
    assert (rows["noise"]["control"], rows["real"]["control"]) == (True, True)
    assert (rows["flat"]["status"], rows["flat"]["origin"]) == ("ok", str(PLUGINS / "flat.py"))
    assert rows["raises_on_import"]["status"] == rows["unresolved"]["status"] == "broken"
    assert rows["raises_on_import"]["reason"].startswith("import: ModuleNotFoundError")
    assert "has no attribute 'Missing'" in rows["unresolved"]["reason"]


def test_list_text(call: Call) -> None:
    output = call("methods", "list", *plugin("broken/wrong_signature"))
    assert output.status == 0
    lines = output.out.splitlines()
    assert lines[0].split() == ["name", "title", "fidelity", "quantizer", "origin"]
    assert any(line.startswith("zeroq") and "released code" in line for line in lines)
    assert any(line.startswith("wrong_signature") and "broken" in line for line in lines)
    assert "is broken: register: PluginValidationError" in " ".join(lines)


def test_show(call: Call) -> None:
    output = call("methods", "show", "flat", *plugin("flat"))
    assert output.status == 0
    words = ("flat: Flat colours", "One random colour an image", "an example of dfqbench's tests", "reconstruction")
    for part in (*words, "--set flat.NAME=VALUE", "input std", "images made in all", "inferred: natural"):
        assert part in output.out
    info = call("methods", "show", "flat", "--json", *plugin("flat")).json
    assert (info["kind"], info["requires"]) == ("method", {"batchnorm": False})
    assert info["params"][1] == {
        "name": "spread",
        "type": "float",
        "default": 1.0,
        "help": "standard deviation of the colours",
        "unit": "input std",
        "source": "inferred: natural",
    }


@pytest.mark.parametrize("name", ["calibrate", "zeroq", "noise", "real"])
def test_show_built_ins(call: Call, name: str) -> None:
    assert call("methods", "show", name).out.startswith(f"{name}: ")
    assert call("methods", "show", name, "--json").json["name"] == name


def test_show_distill_has_the_strength_of_each_recipe(call: Call) -> None:
    lines = call("methods", "show", "distill").out.splitlines()
    head = next(line for line in lines if "10 classes" in line)
    assert head.split() == ["recipe", "10", "classes", "100", "classes", "1,000", "classes"]
    gdfq = next(line for line in lines if line.startswith("gdfq "))
    assert gdfq.split() == ["gdfq", "0.005", "(5e-07)", "5e-05", "(5e-09)", "5e-07", "(5e-13)"]
    assert "strength of a recipe: the coefficient of sum dz^2" in " ".join(lines)
    found = call("methods", "show", "distill", "--json").json["strength"]["clusterq"]
    assert [entry["classes"] for entry in found] == [10, 100, 1000]
    assert found[0]["coefficient"] == pytest.approx(0.05)
    assert call("methods", "show", "calibrate", "--json").json["strength"] == {}


def test_new_prints_files_and_next_commands(call: Call) -> None:
    output = call("methods", "new", "mine")
    assert output.status == 0
    commands = ("cd mine", "pip install -e '.[test]'", "dfqbench run --grid smoke --methods mine,noise")
    assert all(part in output.out for part in ("mine/src/dfqbench_mine/plugin.py", *commands))


def test_check_prints_corrections(call: Call) -> None:
    output = call("methods", "check", "plain_params", *plugin("broken/plain_params"))
    assert output.status == 1
    assert all(part in output.out for part in ("failed   contract", "write it as @dataclass(frozen=True)"))
    assert "'parameters' and what follows was not run" in output.err
    assert "1 of 15 checks failed" in output.err
    output = call("methods", "check", "plain_params", *plugin("broken/plain_params"), "--json")
    assert output.status == 1
    assert {finding["status"] for finding in json.loads(output.out)} == {"failed", "ok", "not run"}
    output = call("methods", "check", "raises_on_import", *plugin("broken/raises_on_import"))
    assert output.status == 1
    assert "did not load: ModuleNotFoundError" in output.err
