"""`dfqbench grids`: lists presets and plugins' grids, and shows one."""

from __future__ import annotations

import json
from pathlib import Path

import typer
from typer.testing import CliRunner, Result

from dfqbench.api import InputError, UsageError
from dfqbench.cli import grids


def run(*arguments: str | Path) -> Result:
    app = typer.Typer()
    grids.register(app)
    return CliRunner().invoke(app, ["grids", *map(str, arguments)])


def test_list() -> None:
    rows = {row["name"]: row for row in json.loads(run("list", "--json").stdout)}
    assert set(rows) == {"smoke", "w4a4", "w3a3", "w5a5", "w8a8", "bits"}
    assert rows["smoke"]["schemes"] == ["w4a4@gdfq"]
    assert {row["status"] for row in rows.values()} == {"ok"}
    assert "w8a8@gdfq, w5a5@gdfq" in run("list").stdout


def test_a_plugin_s_broken_grid_is_listed_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "night.toml").write_text("schemes = 3\n")
    (tmp_path / "mine.py").write_text(
        "from pathlib import Path\nfrom dfqbench.api import FileOffer, hookimpl\n@hookimpl\n"
        "def dfqbench_grids(): return [FileOffer('night', str(Path(__file__).with_name('night.toml')))]\n"
    )
    option = ("--plugin", tmp_path / "mine.py")
    rows = {row["name"]: row for row in json.loads(run("list", "--json", *option).stdout)}
    assert rows["night"]["status"] == "broken"
    assert "key 'schemes'" in rows["night"]["reason"]
    assert rows["w4a4"]["status"] == "ok"
    assert "night is broken: " in run("list", *option).stdout


def test_show() -> None:
    shown = run("show", "w4a4").stdout
    assert 'schemes = ["w4a4@gdfq"]' in shown
    assert shown.splitlines()[0].endswith("w4a4.toml")
    full = json.loads(run("show", "w4a4", "--json").stdout)
    assert (full["threads"], full["set"], full["methods"]) == (1, {}, ["*"])


def test_show_a_file(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('schemes = ["w2a2"]\n')
    assert json.loads(run("show", tmp_path / "mine.toml", "--json").stdout)["name"] == "mine"
    (tmp_path / "mine.toml").write_text("[[[")
    assert isinstance(run("show", tmp_path / "mine.toml").exception, InputError)


def test_show_unknown() -> None:
    assert isinstance(run("show", "nothing").exception, UsageError)
