"""Runs on one folder, with workers that sleep: what sharing costs, in time and in file operations."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from dfqbench.plugins import load_plugins
from dfqbench.run.execute.job import Outcome
from dfqbench.run.schedule.run_environment import Rules
from dfqbench.run.store.environment import describe_environment
from pretend import Executor, done, plan_of, schedule

AUDITED = {"open", "os.scandir", "os.listdir", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link"}


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


class Shared(NamedTuple):
    """What runs on one folder did."""

    begun: list[str]  # cells, as often as they were begun
    share: float  # ideal time by measured time
    operations: float  # file operations of all runs for one cell


def share_cells(folder: Path, monkeypatch: pytest.MonkeyPatch, runs: int, cells_each: int, seconds: float) -> Shared:
    """Let runs in threads share cells that take so many seconds each."""
    plugins, description = load_plugins(), describe_environment("cpu")
    plan = plan_of("noise", plugins=plugins, seeds=f"0-{runs * cells_each - 1}")
    ended: list[float] = []

    def work(*_: Any) -> Outcome:
        time.sleep(seconds)
        ended.append(time.monotonic())
        return done()

    def peer(_: int) -> list[str]:
        executor = Executor(work, slots=1)
        rules = Rules(separate=True)
        schedule(folder, plan, executor, rules=rules, plugins=plugins, description=description)
        return [Path(job.attempt).parent.name for job in executor.jobs]

    # The disk of the machine that tests is not what is measured.
    monkeypatch.setattr(os, "fsync", lambda _: None)
    operations = Operations(folder, monkeypatch)
    begin = time.monotonic()
    with ThreadPoolExecutor(runs) as pool:
        begun = [cell for cells in pool.map(peer, range(runs)) for cell in cells]
    share = cells_each * seconds / (max(ended) - begin)
    return Shared(begun, share, sum(operations.counts.values()) / len(plan.cells))
