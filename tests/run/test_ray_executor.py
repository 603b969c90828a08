from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from dfqbench.api.errors import UsageError
from dfqbench.cli.options import GridRequest, planned
from dfqbench.plugins import load_plugins
from dfqbench.run.execute import node_executor, ray_cluster, ray_executor
from dfqbench.run.execute.cancellation import Cancellation
from dfqbench.run.execute.events import Event, Phase, PhaseStarted, SharedJob, Sharing, Warned
from dfqbench.run.execute.job import EvaluatorDiedError, Job, JobMember, OnEvent, Outcome, Slot
from dfqbench.run.execute.node_executor import NodeFacts, NodeRefusedError, node_facts
from dfqbench.run.execute.ray_cluster import connect
from dfqbench.run.execute.ray_executor import RayExecutor
from dfqbench.run.schedule.run import Options, run_plan
from dfqbench.run.schedule.run_environment import RunEnvironment
from dfqbench.run.store.environment import environment_id
from dfqbench.run.store.run_folder import RunFolder
from fake_ray import FakeRay
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


@cache
def known_facts() -> NodeFacts:
    return node_facts("cpu")


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    monkeypatch.setattr(node_executor, "LocalExecutor", Local)
    for module in (node_executor, ray_cluster):
        monkeypatch.setattr(module, "node_facts", lambda *_: known_facts())
    monkeypatch.setattr(node_executor, "SEEN_WITHIN", 0.0)
    monkeypatch.setattr(ray_executor, "POLL", 0.02)
    monkeypatch.setattr(ray_executor, "NEWS", 0.2)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "")
    monkeypatch.delenv("RAY_USAGE_STATS_ENABLED")
    return FakeRay().install(monkeypatch)


def use(work: Work) -> None:
    Local.work = staticmethod(work)


def start(folder: Path, work: Work, **changes: Any) -> RayExecutor:
    use(work)
    options = {"jobs": None, "cells": 9, "threads": 1, "grace": 5.0, "confined": True, "data": ()}
    return connect("auto").executor(folder, **options | changes)[0]


def job_of(folder: Path) -> Job:
    plan = plan_of("noise", "w4a4")
    env = RunEnvironment(RunFolder(folder), load_plugins(), "cpu")
    return env.job([(plan.cells[0], folder)], time.monotonic())


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


def test_job_is_given_up_after_its_node_was_lost_four_times(ray: FakeRay, tmp_path: Path) -> None:
    numbers = []

    def work(number: int, *_: Any) -> Outcome:
        numbers.append(number)
        ray.actors[number].lose()
        ray.actors[number].restart()
        return done()

    executor = start(tmp_path, work)
    outcome = executor.run(job_of(tmp_path), Slot(1), lambda _: None, Cancellation())
    assert (outcome.status, outcome.died, len(numbers)) == ("failed", True, 4)
    assert outcome.error is not None
    assert "its node was lost 4 times" in outcome.error["message"]


def test_lost_node_is_used_again_after_its_restart(ray: FakeRay, tmp_path: Path) -> None:
    executor = start(tmp_path, lambda number, *_: done(node=number), jobs=1)
    ray.actors[0].lose()
    threading.Timer(0.3, ray.actors[0].restart).start()
    outcome = executor.run(job_of(tmp_path), Slot(0), lambda _: None, Cancellation())
    assert outcome.result["node"] == 0


def test_lost_node_that_comes_back_with_other_packages_is_left_out(
    ray: FakeRay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor = start(tmp_path, lambda *_: done(), jobs=1)
    monkeypatch.setattr(node_executor, "node_facts", lambda *_: with_package(known_facts(), "torch", "1.0"))
    ray.actors[0].lose()
    ray.actors[0].restart()
    # A restart that was not seen: the node executor itself refuses.
    outcome = executor.run(job_of(tmp_path), Slot(0), lambda _: None, Cancellation())
    assert outcome.status == "failed"
    assert outcome.error is not None
    assert "no node of the Ray cluster can go on with this run" in outcome.error["message"]


def test_members_that_the_lost_worker_declined_are_not_sent_again(ray: FakeRay, tmp_path: Path) -> None:
    members = []

    def work(number: int, job: Job, on_event: OnEvent, _: Cancellation) -> Outcome:
        members.append(len(job.members))
        on_event(SharedJob(Sharing.ALONE, len(job.members)))
        if len(members) == 1:
            time.sleep(0.3)
            ray.actors[number].lose()
        return done()

    executor = start(tmp_path, work)
    job = replace(job_of(tmp_path), members=[JobMember({}, "", "")])
    assert executor.run(job, Slot(0), lambda _: None, Cancellation()).status == "ok"
    assert members == [1, 0]


@pytest.mark.parametrize("hurry", [False, True])
def test_cancellation_reaches_the_node(hurry: bool, ray: FakeRay, tmp_path: Path) -> None:
    def work(_number: int, _job: Job, _on_event: OnEvent, there: Cancellation) -> Outcome:
        end = time.monotonic() + 20.0
        while time.monotonic() < end and not (there.reason and there.hurry == hurry):
            time.sleep(0.01)
        return Outcome("preempted")

    executor, here = start(tmp_path, work), Cancellation()
    here.hurry = hurry
    threading.Timer(0.2, here.request, ("signal",)).start()
    begin = time.monotonic()
    assert executor.run(job_of(tmp_path), Slot(0), lambda _: None, here).status == "preempted"
    assert time.monotonic() - begin < 15.0


def test_stop_while_no_node_is_free_keeps_the_cell(ray: FakeRay, tmp_path: Path) -> None:
    executor, here = start(tmp_path, lambda *_: done(), jobs=1), Cancellation()
    ray.actors[0].lose()
    threading.Timer(0.3, here.request, ("signal",)).start()
    outcome = executor.run(job_of(tmp_path), Slot(0), lambda _: None, here)
    assert outcome.status == "preempted"
    assert outcome.error is not None
    assert "goes on from its last checkpoint" in outcome.error["message"]


def test_errors_keep_their_class(ray: FakeRay, tmp_path: Path) -> None:
    def full(*_: Any) -> Outcome:
        raise OSError(28, "No space left on device")

    executor = start(tmp_path, full)
    with pytest.raises(OSError, match="No space left") as caught:
        executor.run(job_of(tmp_path), Slot(0), lambda _: None, Cancellation())
    assert caught.value.errno == 28


def test_evaluator_reports_progress_and_can_be_killed(ray: FakeRay, tmp_path: Path) -> None:
    evaluator = start(tmp_path, lambda *_: done()).evaluator(Slot(1))
    assert evaluator.ask({"op": "baseline"})["n"] == 540
    progress: list[tuple[int, int]] = []
    threading.Timer(0.5, evaluator.kill).start()
    with pytest.raises(EvaluatorDiedError, match="was killed"):
        evaluator.ask({"op": "wait"}, on_progress=lambda *news: progress.append(news))
    assert progress == [(3, 10)]


def test_no_cell_is_lost_with_a_node(ray: FakeRay, tmp_path: Path) -> None:
    jobs = []

    def work(number: int, job: Job, *_: Any) -> Outcome:
        jobs.append(number)
        if number == 1 and jobs.count(1) == 1:
            ray.actors[1].lose()
        return done()

    executor = start(tmp_path, work)
    plan = plan_of("noise", "w4a4", seeds="0-5")
    summary = schedule(tmp_path, plan, executor)  # type: ignore[arg-type]
    assert [record.status for record in summary.records] == ["ok"] * 6
    assert sum(bool(record.warnings) for record in summary.records) == 1


def with_package(facts: NodeFacts, name: str, version: str) -> NodeFacts:
    packages = {**facts.description["packages"], name: version}
    return replace(facts, description={**facts.description, "packages": packages})


@pytest.mark.parametrize(
    ("resources", "device", "parts"),
    [
        ([{"CPU": 2.0}], "cuda", ("Ray has no GPU", "--num-gpus")),
        ([{"CPU": 2.0, "GPU": 2.0}], "cuda:1", ("names a GPU", "write --device cuda")),
        ([{"memory": 1.0}], "auto", ("no CPU", "--num-cpus")),
    ],
)
def test_cluster_without_what_is_asked_for_is_refused(
    resources: list[dict[str, float]], device: str, parts: tuple[str, ...], ray: FakeRay
) -> None:
    ray.resources = resources
    with pytest.raises(UsageError) as caught:
        connect(device)
    for part in parts:
        assert part in str(caught.value)


def test_cluster_that_cannot_be_reached_is_refused(ray: FakeRay) -> None:
    ray.reachable = False
    with pytest.raises(UsageError, match=r"no Ray cluster can be reached: .*; start it with `ray start --head`"):
        connect("auto")


def test_one_job_for_each_node_or_gpu(ray: FakeRay, tmp_path: Path) -> None:
    assert len(start(tmp_path, lambda *_: done()).slots) == 2
    assert len(start(tmp_path, lambda *_: done(), cells=1).slots) == 1
    options: dict[str, Any] = {"threads": 1, "grace": 5.0, "confined": True, "data": ()}
    executor, note = connect("auto").executor(tmp_path, jobs=4, cells=9, **options)
    assert (len(executor.slots), note) == (2, "2 at once instead of 4: Ray has 2 nodes")
    ray.resources = [{"CPU": 2.0}, {"CPU": 8.0, "GPU": 2.0}]
    cluster = connect("auto")
    executor, _ = cluster.executor(tmp_path, jobs=None, cells=9, **options)
    assert (len(executor.slots), cluster.device) == (2, "cuda")


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda facts: with_package(facts, "torch", "1.0"), "torch 1.0 instead of"),
        (lambda facts: replace(facts, precision="mixed-bfloat16x"), "precision mixed-bfloat16x instead of"),
        (lambda facts: replace(facts, code={**facts.code, "dfqbench": "0"}), "the code of dfqbench"),
        (
            lambda facts: replace(facts, description={**facts.description, "instructions": ["avx"]}),
            "instructions ['avx'] instead of",
        ),
    ],
)
def test_nodes_that_differ_are_refused(change: Callable[[NodeFacts], NodeFacts], part: str, ray: FakeRay) -> None:
    ray.answers = lambda node, facts: change(facts) if node == "n1" else facts
    with pytest.raises(UsageError, match="host1 .* differs from node host0 .*run on nodes that are equal") as caught:
        connect("auto")
    assert part in str(caught.value)


def test_nodes_with_other_code_than_this_machine_are_refused(ray: FakeRay) -> None:
    ray.answers = lambda _, facts: replace(facts, code={**facts.code, "dfqbench": "0"})
    with pytest.raises(UsageError, match=r"node host0 .* differs from .*: the code of dfqbench"):
        connect("auto")
    # Numbers do not depend on the other packages of this machine.
    ray.answers = lambda _, facts: with_package(facts, "torch", "1.0")
    assert connect("auto").facts.description["packages"]["torch"] == "1.0"


def test_nodes_decide_about_environment_and_precision(
    ray: FakeRay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = replace(with_package(known_facts(), "torch", "1.0"), precision="float32")
    for module in (node_executor, ray_cluster):
        monkeypatch.setattr(module, "node_facts", lambda *_: facts)
    use(lambda *_: done())
    cluster = connect("auto")
    assert ray.usage_stats == "0"
    request = GridRequest(grid="smoke", methods="noise")
    plan, plugins = planned(request, cluster.device, precision=cluster.facts.precision)
    options = Options(tmp_path, None, cluster.device, executor="ray", cluster=cluster)
    (record,) = run_plan(plan, plugins, options, Console(quiet=True))[0].records
    assert (record.status, record.precision) == ("ok", "float32")
    assert record.environment == environment_id(facts.description)


def test_node_without_dfqbench_is_refused(ray: FakeRay) -> None:
    def missing(_: str, answer: object) -> object:
        raise ModuleNotFoundError("No module named 'dfqbench'")

    ray.answers = missing
    with pytest.raises(
        UsageError, match=r"cannot run dfqbench: ModuleNotFoundError: No module named 'dfqbench'; insta"
    ):
        connect("auto")


def test_folder_and_data_that_are_not_shared_are_refused(
    ray: FakeRay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match=r"it lacks /none/here; share the results folder"):
        start(tmp_path, lambda *_: done(), data=[Path("/none/here")])
    # The node sees another folder at the same path.
    monkeypatch.setattr(Path, "touch", lambda *_: None)
    with pytest.raises(UsageError, match=r"does not see .*, or another folder lies there; share the results folder"):
        start(tmp_path, lambda *_: done())
    ray.room = False
    with pytest.raises(UsageError, match=r"Ray has no room for 2 jobs .* at once; wait for others"):
        start(tmp_path, lambda *_: done())
    assert list(tmp_path.iterdir()) == []


def test_facts_name_the_code_of_dfqbench_and_of_plugins(tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text("a = 1\n")
    before = node_facts("cpu", [str(file)])
    assert {"dfqbench", "dfqbench_methods", str(file)} <= set(before.code)
    assert before.differences(node_facts("cpu", [str(file)])) == []
    file.write_text("a = 2\n")
    assert before.differences(node_facts("cpu", [str(file)])) == [f"the code of {file}"]


def test_call_whose_answer_was_lost_is_ended_before_the_next(ray: FakeRay, tmp_path: Path) -> None:
    begun: list[float] = []

    def work(_number: int, _job: Job, on_event: OnEvent, there: Cancellation) -> Outcome:
        begun.append(time.monotonic())
        if len(begun) == 1:
            # The node works on, but what it sends does not arrive.
            ray.actors[0].lose()
            ray.actors[0].lost = False
            there.wait(20.0)
            return Outcome("preempted")
        on_event(PhaseStarted(Phase.SAVING))
        return done()

    executor, events = start(tmp_path, work, jobs=1), list[Event]()
    assert executor.run(job_of(tmp_path), Slot(0), events.append, Cancellation()).status == "ok"
    assert begun[1] - begun[0] < 15.0
    assert [type(event) for event in events] == [Warned, PhaseStarted]


def test_job_ends_where_its_news_are_not_asked_for(
    ray: FakeRay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(_number: int, _job: Job, _on_event: OnEvent, there: Cancellation) -> Outcome:
        there.wait(20.0)
        assert there.hurry
        return Outcome("preempted")

    monkeypatch.setattr(node_executor, "SILENCE", 0.1)
    start(tmp_path, work)
    assert isinstance(ray.actors[0].instance.run(1, job_of(tmp_path)), NodeRefusedError)
