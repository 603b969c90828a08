from __future__ import annotations

from pathlib import Path

from tests.cli.calls import Call


def test_list(call: Call) -> None:
    rows = {row["name"]: row for row in call("grids", "list", "--json").json}
    assert set(rows) == {"first", "smoke", "w4a4", "w3a3", "w5a5", "w8a8", "bits"}
    assert rows["smoke"]["schemes"] == ["w4a4@gdfq"]
    assert {row["status"] for row in rows.values()} == {"ok"}
    assert "w8a8@gdfq, w5a5@gdfq" in call("grids", "list").out


def test_broken_grid_of_a_plugin_is_listed_with_its_reason(call: Call, tmp_path: Path) -> None:
    (tmp_path / "night.toml").write_text("schemes = 3\n")
    offer = f"def dfqbench_grids(): return [FileOffer('night', {str(tmp_path / 'night.toml')!r})]"
    (tmp_path / "mine.py").write_text(f"from dfqbench.api import FileOffer, hookimpl\n@hookimpl\n{offer}\n")
    option = ("--plugin", tmp_path / "mine.py")
    rows = {row["name"]: row for row in call("grids", "list", "--json", *option).json}
    assert (rows["night"]["status"], rows["w4a4"]["status"]) == ("broken", "ok")
    assert "key 'schemes'" in rows["night"]["reason"]
    assert "night is broken: " in call("grids", "list", *option).out


def test_show(call: Call, tmp_path: Path) -> None:
    shown = call("grids", "show", "w4a4").out
    assert 'schemes = ["w4a4@gdfq"]' in shown
    assert shown.splitlines()[0].endswith("w4a4.toml")
    full = call("grids", "show", "w4a4", "--json").json
    assert (full["threads"], full["set"], full["methods"]) == (
        1,
        {},
        ["*", "real", "noise+distill:gdfq", "real+distill:gdfq"],
    )
    (tmp_path / "mine.toml").write_text('schemes = ["w2a2"]\n')
    assert call("grids", "show", tmp_path / "mine.toml", "--json").json["name"] == "mine"
