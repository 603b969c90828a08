from __future__ import annotations

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from dfqbench.api import DfqError, UsageError
from dfqbench.cli import fetch
from dfqbench.targets import fetch as fetching
from dfqbench.targets.download import Progress
from dfqbench.targets.fetch import Fetched


def invoke(*arguments: str, environment: dict[str, str] | None = None) -> str:
    app = typer.Typer()
    fetch.register(app)
    app.callback()(lambda: None)
    done = CliRunner().invoke(app, ["fetch", *arguments], env=environment)
    if isinstance(done.exception, DfqError):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.stdout


def test_says_what_it_did_and_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def fake(what: str, folder: Path, mirror: str | None, progress: Progress) -> Fetched:
        calls.append((what, folder, mirror))
        progress("a.zip", 5, 10)
        progress("a.zip", 10, 10)
        return Fetched(what, folder / "x", "ab" * 32, fresh=len(calls) == 1)

    monkeypatch.setattr(fetching, "fetch", fake)
    out = invoke("cifar10", "timm:x", "--data", str(tmp_path), "--mirror", "http://m")
    assert calls == [("cifar10", tmp_path, "http://m"), ("timm:x", tmp_path, "http://m")]
    assert out.splitlines() == [
        f"cifar10: fetched: {tmp_path}/x (sha256 {'ab' * 32})",
        f"timm:x: already there: {tmp_path}/x (sha256 {'ab' * 32})",
    ]
    invoke("cifar10", environment={"DFQBENCH_DATA": str(tmp_path / "other")})
    assert calls[-1][1] == tmp_path / "other"


def test_faults_come_out(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="licence"):
        invoke("imagenet", "--data", str(tmp_path))
    with pytest.raises(DfqError, match="cannot download"):
        invoke("cifar10", "--data", str(tmp_path), "--mirror", "http://127.0.0.1:9")
    assert not list(tmp_path.iterdir())
