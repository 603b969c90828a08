from __future__ import annotations

import sys
from pathlib import Path

import pytest
from tests.cli.calls import Call, Output

from dfqbench.cli.main import main


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Call:
    """Call `dfqbench` in this process, in an empty folder and without the user's own data folder."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def run(*arguments: str | Path) -> Output:
        monkeypatch.setattr(sys, "argv", ["dfqbench", *map(str, arguments)])
        capsys.readouterr()
        status = main()
        return Output(status, *capsys.readouterr())

    return run
