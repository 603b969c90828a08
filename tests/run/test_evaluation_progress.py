from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from dfqbench.plugins import load_plugins
from dfqbench.run.evaluate.evaluator import Evaluator
from dfqbench.run.execute.events import Event, Phase, Progress
from dfqbench.run.execute.job import OnProgress
from dfqbench.run.execute.processes import EvaluatorProcess
from dfqbench.run.schedule.progress import View
from dfqbench.run.schedule.run_environment import RunEnvironment
from dfqbench.run.store.run_folder import RunFolder
from pretend import Evaluator as PretendEvaluator
from pretend import Executor, done, plan_of, schedule

SPEAKS = """
import json, sys
print(json.dumps({"ready": True}), flush=True)
sys.stdin.readline()
for line in sys.stdin:
    for done in (200, 400):
        print(json.dumps({"progress": [done, 540]}), flush=True)
    print(json.dumps({"op": json.loads(line)["op"]}), flush=True)
"""


def test_lines_of_progress_come_before_the_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(_module: str, _arguments: list[str], _log: Any, **_: Any) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        return subprocess.Popen([sys.executable, "-c", SPEAKS], stdin=pipe, stdout=pipe, text=True)

    monkeypatch.setattr("dfqbench.run.execute.processes.spawn", start)
    evaluator = EvaluatorProcess(tmp_path / "log.txt", 1, "cpu")
    reports: list[tuple[int, int]] = []
    try:
        answer = evaluator.ask({"op": "one"}, on_progress=lambda images, of: reports.append((images, of)))
        assert answer == {"op": "one"}
        assert evaluator.ask({"op": "two"}) == {"op": "two"}
    finally:
        evaluator.close()
    assert reports == [(200, 540), (400, 540)]


def test_evaluator_reports_the_images_that_it_has_used(tmp_path: Path) -> None:
    (cell,) = plan_of("noise").cells
    reports: list[tuple[int, int]] = []
    evaluator = Evaluator(1, "cpu")
    request = RunEnvironment(RunFolder(tmp_path), load_plugins(), "cpu").request(cell, tmp_path) | {"op": "baseline"}
    silent = evaluator.answer(request)
    evaluator._teachers.clear()
    evaluator.on_progress = lambda images, of: reports.append((images, of))
    told = evaluator.answer(request)
    assert reports == [(200, 540), (400, 540), (540, 540)]
    assert told | {"seconds": 0} == silent | {"seconds": 0}


def test_bars_of_cells_show_the_images_evaluated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Reporting(PretendEvaluator):
        def ask(
            self, request: Mapping[str, Any], limit: float = 0.0, on_progress: OnProgress | None = None
        ) -> dict[str, Any]:
            if on_progress is not None:
                on_progress(100, 540)
            return super().ask(request, limit, on_progress)

    events: list[Event] = []
    monkeypatch.setattr(View, "event", lambda _self, event: events.append(event))
    seconds = {"setup": 1.0, "synthesis": 2.0, "quantization": 3.0}
    executor = Executor(lambda *_: done(seconds=seconds), slots=1, evaluator=Reporting())
    schedule(tmp_path, plan_of("noise"), executor)
    # Of the full-precision network and of the student.
    assert events.count(Progress(Phase.EVALUATION, 100, 540, {})) == 2
