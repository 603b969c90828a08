from __future__ import annotations

import os
from pathlib import Path

import pytest

from dfqbench.targets import folders
from dfqbench.targets.folders import data_folders, fetch_folder


@pytest.fixture
def default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "default"
    monkeypatch.setattr(folders, "default_folder", lambda: folder)
    return folder


def test_option_before_variable_before_default(tmp_path: Path, default: Path) -> None:
    a, b, c = tmp_path / "a", tmp_path / "b", tmp_path / "c"
    variables = {"DFQBENCH_DATA": f"{b}{os.pathsep}{c}{os.pathsep}{a}"}
    assert data_folders([a], variables) == [a, b, c]
    default.mkdir()
    assert data_folders([a], variables) == [a, b, c]  # an empty default folder is as good as none
    (default / "fetched.toml").write_text("")
    assert data_folders([a], variables) == [a, b, c, default]


def test_where_fetch_writes(tmp_path: Path, default: Path) -> None:
    assert fetch_folder(None, {}) == default
    assert fetch_folder(None, {"DFQBENCH_DATA": str(tmp_path / "a")}) == tmp_path / "a"
    assert fetch_folder(tmp_path / "b", {"DFQBENCH_DATA": str(tmp_path / "a")}) == tmp_path / "b"
