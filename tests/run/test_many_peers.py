"""64 runs on one folder, with workers that sleep: the time that sharing costs, and its file operations."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from dfqbench.plugins import load_plugins
from dfqbench.run.execute.job import Outcome
from dfqbench.run.schedule.run_environment import Rules
from dfqbench.run.store.environment import describe_environment
from pretend import Executor, done, plan_of, schedule

PEERS, CELLS_EACH, SECONDS = 64, 3, 25.0
AUDITED = {"open", "os.scandir", "os.listdir", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link"}
MOST_OPERATIONS = 6 * PEERS
"""File operations of all runs for one cell: each reads the record of every cell that another has finished."""


class Operations:
    """Counts file operations below a folder."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.counts: Counter[str] = Counter()
        self._folder = str(folder)
        sys.addaudithook(self._audit)  # it stays, and counts nothing else
        for name in ("stat", "lstat"):
            monkeypatch.setattr(os, name, self._counting(getattr(os, name)))

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in AUDITED:
            self._count(event, arguments[0])

    def _count(self, event: str, path: Any) -> None:
        if not isinstance(path, int) and os.fspath(path or "").startswith(self._folder):
            self.counts[event] += 1

    def _counting(self, call: Any) -> Any:
        def counted(path: Any, *arguments: Any, **options: Any) -> Any:
            self._count(call.__name__, path)
            return call(path, *arguments, **options)

        return counted


@pytest.mark.slow
def test_many_runs_share_cells_without_losing_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plugins, description = load_plugins(), describe_environment("cpu")
    plan = plan_of("noise", plugins=plugins, seeds=f"0-{PEERS * CELLS_EACH - 1}")
    ended: list[float] = []

    def work(*_: Any) -> Outcome:
        time.sleep(SECONDS)
        ended.append(time.monotonic())
        return done()

    def peer(_: int) -> list[str]:
        executor = Executor(work, slots=1)
        rules = Rules(separate=True)
        schedule(tmp_path, plan, executor, rules=rules, plugins=plugins, description=description)
        return [Path(job.attempt).parent.name for job in executor.jobs]

    # The disk of the machine that tests is not what is measured.
    monkeypatch.setattr(os, "fsync", lambda _: None)
    operations = Operations(tmp_path, monkeypatch)
    begin = time.monotonic()
    with ThreadPoolExecutor(PEERS) as pool:
        begun = [cell for cells in pool.map(peer, range(PEERS)) for cell in cells]
    share = CELLS_EACH * SECONDS / (max(ended) - begin)
    cells = len(plan.cells)
    each = {name: round(count / cells, 1) for name, count in operations.counts.most_common()}
    with capsys.disabled():
        operations_each = f"{sum(operations.counts.values()) / cells:.0f} operations a cell: {each}"
        sys.stdout.write(f"\n{share:.0%} of the ideal time; {operations_each}\n")
    assert len(begun) == len(set(begun)) == cells == len(list(tmp_path.glob("cells/*/attempt-*/record.json")))
    assert share >= 0.9
    assert sum(operations.counts.values()) / cells <= MOST_OPERATIONS


@pytest.mark.slow
def test_ten_thousand_cells_are_planned_in_seconds() -> None:
    begin = time.process_time()
    plan = plan_of("zeroq,noise,gdfq,dffg,clusterq", "w3a3,w4a4,w5a5,w8a8", seeds="0-499")
    assert len({cell.cell_id for cell in plan.cells}) == 10_000
    assert time.process_time() - begin <= 10.0
