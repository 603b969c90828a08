from __future__ import annotations

from pathlib import Path

import pytest

from many_peers import share_cells

RUNS = 32


@pytest.mark.slow
def test_many_runs_begin_each_cell_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = share_cells(tmp_path, monkeypatch, RUNS, cells_each=2, seconds=3.0)
    assert len(shared.begun) == len(set(shared.begun)) == 2 * RUNS
    assert len(list(tmp_path.glob("cells/*/attempt-*/record.json"))) == 2 * RUNS
