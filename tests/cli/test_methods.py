"""`dfqbench methods`: lists what is there, broken ones with their reason, and shows every parameter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from dfqbench.api import PluginError, UsageError
from dfqbench.cli import methods

EXAMPLES = Path(__file__).parents[1] / "plugins"


def run(*arguments: str | Path) -> Result:
    app = typer.Typer()
    methods.register(app)
    return CliRunner().invoke(app, ["methods", *map(str, arguments)])


def plugin(*names: str) -> list[str]:
    return [word for name in names for word in ("--plugin", str(EXAMPLES / f"{name}.py"))]


def listed(*arguments: str) -> dict[str, dict[str, Any]]:
    result = run("list", "--json", *arguments)
    assert result.exit_code == 0, result.output
    return {row["name"]: row for row in json.loads(result.stdout)}


def test_list_json() -> None:
    rows = listed()
    assert {"zeroq", "noise", "real"} <= set(rows)
    assert rows["zeroq"]["status"] == "ok"
    assert rows["zeroq"]["origin"] == "dfqbench"
    assert rows["zeroq"]["quantizer"] == "calibrate"
    assert rows["noise"]["control"]
    assert not rows["zeroq"]["control"]
    assert all({"name", "title", "origin", "version", "status"} <= set(row) for row in rows.values())


def test_list_json_with_plugins() -> None:
    rows = listed(*plugin("flat", "broken/raises_on_import", "broken/unresolved_load"))
    assert rows["flat"]["status"] == "ok"
    assert rows["flat"]["origin"] == str(EXAMPLES / "flat.py")
    assert rows["raises_on_import"]["status"] == "broken"
    assert rows["raises_on_import"]["reason"].startswith("import: ModuleNotFoundError")
    assert rows["unresolved"]["status"] == "broken"
    assert "has no attribute 'Missing'" in rows["unresolved"]["reason"]


def test_list_text() -> None:
    result = run("list", *plugin("broken/wrong_signature"))
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["name", "title", "fidelity", "quantizer", "origin", "version", "status"]
    assert any(line.startswith("zeroq") and line.endswith("ok") for line in lines)
    assert any(line.startswith("wrong_signature") and line.endswith("broken") for line in lines)
    assert any("is broken: register: PluginValidationError" in line for line in lines)


def test_show() -> None:
    result = run("show", "flat", *plugin("flat"))
    assert result.exit_code == 0
    for part in (
        "flat: Flat colours",
        "One random colour an image",
        "an example of dfqbench's tests",
        "reconstruction",
        "--set flat.NAME=VALUE",
        "input std",
        "images made in all",
        "inferred: natural",
    ):
        assert part in result.stdout


def test_show_json() -> None:
    result = run("show", "flat", "--json", *plugin("flat"))
    info = json.loads(result.stdout)
    assert info["kind"] == "method"
    assert info["requires"] == {"batchnorm": False}
    assert info["params"][1] == {
        "name": "spread",
        "type": "float",
        "default": 1.0,
        "help": "standard deviation of the colours",
        "unit": "input std",
        "source": "inferred: natural",
    }


@pytest.mark.parametrize("name", ["calibrate", "zeroq", "noise", "real"])
def test_show_built_ins(name: str) -> None:
    assert run("show", name).stdout.startswith(f"{name}: ")
    assert json.loads(run("show", name, "--json").stdout)["name"] == name


def test_show_unknown() -> None:
    error = run("show", "zerq").exception
    assert isinstance(error, UsageError)
    assert "did you mean zeroq" in str(error)


def test_show_broken_plugin_gives_reason_and_traceback() -> None:
    result = run("show", "raises_on_import", *plugin("broken/raises_on_import"))
    assert isinstance(result.exception, PluginError)
    assert "did not load: ModuleNotFoundError" in str(result.exception)
    assert "Traceback" in result.stderr
    assert result.stdout == ""
