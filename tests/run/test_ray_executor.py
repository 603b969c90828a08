from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dfqbench.api.errors import UsageError
from dfqbench.run.execute import node_executor, ray_executor
from dfqbench.run.execute.cancellation import Cancellation
from dfqbench.run.execute.events import Event, Phase, PhaseStarted, SharedJob, Sharing, Warned
from dfqbench.run.execute.job import EvaluatorDiedError, Job, JobMember, OnEvent, Outcome, Slot
from dfqbench.run.execute.node_executor import NodeFacts, node_facts
from dfqbench.run.execute.ray_cluster import RayCluster, connect
from dfqbench.run.execute.ray_executor import RayExecutor
from dfqbench.run.plan.plan import Plan
from dfqbench.run.schedule.run_environment import RunEnvironment
from dfqbench.run.store.run_folder import RunFolder
from dfqbench.plugins import load_plugins
from fake_ray import Actor, FakeRay
from pretend import Evaluator, done, plan_of, schedule

Work = Callable[[int, Job, OnEvent, Cancellation], Outcome]


class Local:
    """A local executor, on a node, which hands jobs to a function of the test."""

    work: Work

    def __init__(self, slots: list[Slot], *_: Any, **__: Any) -> None:
        self.slots = slots
        self.asked = StartedEvaluator()

    def run(self, job: Job, slot: Slot, on_event: OnEvent, cancellation: Cancellation) -> Outcome:
        return type(self).work(slot.number, job, on_event, cancellation)

    def evaluator(self, slot: Slot) -> StartedEvaluator:
        return self.asked

    def close(self) -> None:
        pass


class StartedEvaluator(Evaluator):
    """An evaluator that can wait until it is killed."""

    def __init__(self) -> None:
        super().__init__()
        self.killed = threading.Event()

    def start(self) -> None:
        pass

    def ask(self, request: Any, limit: float = 0.0, on_progress: Any = None) -> dict[str, Any]:
        if request["op"] == "wait":
            on_progress(3, 10)
            self.killed.wait(20.0)
            raise EvaluatorDiedError("the evaluator was killed")
        return super().ask(request, limit, on_progress)

    def kill(self) -> None:
        self.killed.set()


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    monkeypatch.setattr(node_executor, "LocalExecutor", Local)
    monkeypatch.setattr(node_executor, "SEEN_WITHIN", 0.0)
    monkeypatch.setattr(ray_executor, "POLL", 0.02)
    monkeypatch.setattr(ray_executor, "NEWS", 0.2)
    return FakeRay().install(monkeypatch)


def start(folder: Path, work: Work, **changes: Any) -> RayExecutor:
    Local.work = staticmethod(work)  # type: ignore[assignment]
    options = {"jobs": None, "cells": 9, "threads": 1, "grace": 5.0, "confined": True, "data": (), "plugin_files": ()}
    return connect("auto").executor(folder, **options | changes)[0]


def job_of(folder: Path) -> Job:
    plan = plan_of("noise", "w4a4")
    env = RunEnvironment(RunFolder(folder), load_plugins(), "cpu")
    return env.job([(plan.cells[0], folder)], time.monotonic())


def lose(ray: FakeRay, number: int) -> None:
    threading.Thread(target=ray.actors[number].lose).start()
    time.sleep(10.0)


def test_job_of_a_lost_node_goes_on_elsewhere(ray: FakeRay, tmp_path: Path) -> None:
    seen: list[tuple[int, float]] = []
    events: list[Event] = []

    def work(number: int, job: Job, on_event: OnEvent, _: Cancellation) -> Outcome:
        seen.append((number, job.started))
        on_event(PhaseStarted(Phase.SYNTHESIS))
        if number == 0:
            time.sleep(0.3)
            ray.actors[0].lose()
            time.sleep(0.3)
        return done(wall_before=5.0)

    executor = start(tmp_path, work)
    begin = time.monotonic()
    outcome = executor.run(replace(job_of(tmp_path), started=-1e9), Slot(0), events.append, Cancellation())
    executor.close()
    assert [number for number, _ in seen] == [0, 1]
    # The clock of another machine is not used.
    assert all(started >= begin for _, started in seen)
    assert outcome.status == "ok"
    # The seconds before the loss count where the checkpoint has them.
    assert outcome.result["wall_before"] == pytest.approx(4.6, abs=0.3)
    assert [type(event) for event in events] == [PhaseStarted, Warned, PhaseStarted]
    assert list(tmp_path.iterdir()) == []
