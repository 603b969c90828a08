from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from dfqbench.run.worker.plugin_checks import DataGuard


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "images.npz").write_bytes(b"0")
    return folder


def test_openings_and_listings_are_recorded(data: Path) -> None:
    folder, file = DataGuard([data]), DataGuard([data / "images.npz"])
    with folder.watching(), file.watching():
        (data / "images.npz").read_bytes()
        list(data.iterdir())
        os.listdir(data)  # noqa: PTH208 - the old way must be recorded too
    assert {Path(hit) for hit in folder.hits} == {data, data / "images.npz"}
    assert [Path(hit) for hit in file.hits] == [data / "images.npz"]


def test_nothing_is_recorded_elsewhere_or_outside_watching_or_of_open_files(data: Path, tmp_path: Path) -> None:
    guard = DataGuard([data])
    (data / "images.npz").read_bytes()
    descriptor = os.open(data / "images.npz", os.O_RDONLY)
    with guard.watching(), os.fdopen(descriptor) as stream:
        stream.read()
        (tmp_path / "data-of-mine").write_text("x")
        (tmp_path / "data-of-mine").read_text()
    (data / "images.npz").read_bytes()
    assert guard.hits == []


def test_links_and_relative_paths_are_recorded(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = tmp_path / "link"
    link.symlink_to(data)
    guard = DataGuard([data])
    with guard.watching():
        (link / "images.npz").read_bytes()
    assert len(guard.hits) == 1
    monkeypatch.chdir(data)
    with guard.watching():
        Path("images.npz").read_bytes()
        with pytest.raises(ValueError, match="pickled|magic|file"):
            np.load(data / "images.npz")
    assert len(guard.hits) == 3


def test_changes_of_results_outside_the_own_folder_are_recorded(tmp_path: Path) -> None:
    guard = DataGuard([], tmp_path, [tmp_path / "own"])
    with guard.watching():
        (tmp_path / "own").mkdir()
        (tmp_path / "own" / "a").write_text("x")
        (tmp_path / "b").write_text("x")
        (tmp_path / "b").rename(tmp_path / "c")
        with guard.watching(on=False):
            (tmp_path / "c").unlink()
    assert [Path(path).name for path in guard.writes] == ["b", "c"]
