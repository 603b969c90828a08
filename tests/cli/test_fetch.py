from __future__ import annotations

from pathlib import Path

import pytest
from tests.cli.calls import Call

from dfqbench.targets import fetch as fetching
from dfqbench.targets.download import Progress
from dfqbench.targets.fetch import Fetched


def test_prints_state_place_and_hash(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def fake(what: str, folder: Path, mirror: str | None, progress: Progress) -> Fetched:
        calls.append((what, folder, mirror))
        progress("a.zip", 5, 10)
        progress("a.zip", 10, 10)
        return Fetched(what, folder / "x", "ab" * 32, fresh=len(calls) == 1)

    monkeypatch.setattr(fetching, "fetch", fake)
    output = call("fetch", "cifar10", "timm:x", "--data", tmp_path, "--mirror", "http://m")
    assert calls == [("cifar10", tmp_path, "http://m"), ("timm:x", tmp_path, "http://m")]
    assert output.out.splitlines() == [
        f"cifar10: fetched: {tmp_path}/x (sha256 {'ab' * 32})",
        f"timm:x: already there: {tmp_path}/x (sha256 {'ab' * 32})",
    ]
    monkeypatch.setenv("DFQBENCH_DATA", str(tmp_path / "other"))
    assert call("fetch", "cifar10").status == 0
    assert calls[-1][1] == tmp_path / "other"


def test_failed_downloads_leave_nothing(call: Call, tmp_path: Path) -> None:
    data = tmp_path / "data"
    assert "licence" in call("fetch", "imagenet", "--data", data).err
    output = call("fetch", "cifar10", "--data", data, "--mirror", "http://127.0.0.1:9")
    assert output.status == 2
    assert "cannot download" in output.err
    assert not data.exists() or not list(data.iterdir())
