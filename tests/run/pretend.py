"""An executor that runs nothing: what a job does is up to the test."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from dfqbench.grid import apply, load_grid, parse_selection
from dfqbench.plugins import load_plugins
from dfqbench.run.execute.cancellation import Cancellation
from dfqbench.run.execute.job import Job, OnEvent, Outcome, Slot
from dfqbench.run.plan.estimate import History
from dfqbench.run.plan.plan import Plan, build_plan
from dfqbench.run.schedule.progress import Display
from dfqbench.run.schedule.run_environment import Rules, RunEnvironment
from dfqbench.run.schedule.scheduler import Scheduler, Summary
from dfqbench.run.store.run_folder import RunFolder
from dfqbench.targets.catalogue import Catalogue


class Evaluator:
    """Says that everything is on its grid."""

    def ask(self, request: Mapping[str, Any], limit: float = 0.0) -> dict[str, Any]:
        if request["op"] == "baseline":
            return {"fp_top1": 99.0, "n": 540, "subset": None, "parameters": 7}
        if request["op"] == "environment":
            return {"torch": {}}
        numbers = dict.fromkeys(
            ("fp_top1", "top1", "top5", "drop", "top1_se", "agreement", "peak_mib", "seconds"), 90.0
        )
        return numbers | {"correct": "", "coverage": None, "levels_ok": True, "violations": []}

    def kill(self) -> None:
        pass

    def close(self) -> None:
        pass


class Executor:
    """Two slots; what a job does is up to the test."""

    in_process = False

    def __init__(self, work: Callable[[Job, OnEvent, Cancellation], Outcome]) -> None:
        self.slots = [Slot(0), Slot(1)]
        self.order: list[str] = []
        self._work = work

    def run(self, job: Job, slot: Slot, on_event: OnEvent, stop: Cancellation) -> Outcome:
        self.order.append(f"{job.method} {job.scheme['w_bits']}")
        return self._work(job, on_event, stop)

    def evaluator(self, slot: Slot) -> Evaluator:
        return Evaluator()

    def close(self) -> None:
        pass


def plan_of(methods: str, bits: str) -> Plan:
    plugins = load_plugins()
    grid = apply(load_grid("smoke", plugins), parse_selection(methods=methods, bits=bits))
    return build_plan(grid, Catalogue.discover([]), plugins)


def swept(
    folder: Path, plan: Plan, executor: Executor, stop: Cancellation | None = None, rules: Rules | None = None
) -> Summary:
    env = RunEnvironment(RunFolder(folder), load_plugins(), "cpu", rules)
    return Scheduler(env, executor, Display(Console(quiet=True), 1), History([]), stop).run(plan.cells)


def done(**result: Any) -> Outcome:
    return Outcome("ok", result={"seconds": {}, "real_data_opened": []} | result)


def at_once(_job: Job, _on_event: OnEvent, _stop: Cancellation) -> Outcome:
    return done()
