"""Runs for tests: an executor and an evaluator that run nothing, and small plans."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from dfqbench.grid import apply, load_grid, parse_selection
from dfqbench.plugins import Plugins, load_plugins
from dfqbench.run.execute.cancellation import Cancellation
from dfqbench.run.execute.job import Job, OnEvent, OnProgress, Outcome, Slot
from dfqbench.run.plan.estimate import History
from dfqbench.run.plan.plan import Plan, build_plan
from dfqbench.run.schedule.progress import Display
from dfqbench.run.schedule.run import Options, run_plan
from dfqbench.run.schedule.run_environment import Rules, RunEnvironment
from dfqbench.run.schedule.scheduler import Scheduler, Summary
from dfqbench.run.store.run_folder import RunFolder
from dfqbench.targets.catalogue import Catalogue


def assert_parts_sum_to_wall_time(seconds: Mapping[str, float]) -> None:
    parts = ("setup", "paid_synthesis", "quantization", "evaluation", "unattributed")
    assert sum(seconds[part] for part in parts) == pytest.approx(seconds["wall"], abs=1e-6)


class Evaluator:
    """Reports that everything is on its quantization levels."""

    def __init__(self, **changes: Any) -> None:
        self.changes = changes

    def ask(
        self, request: Mapping[str, Any], limit: float = 0.0, on_progress: OnProgress | None = None
    ) -> dict[str, Any]:
        if request["op"] == "baseline":
            return {"fp_top1": 99.0, "n": 540, "subset": None, "parameters": 7}
        if request["op"] == "environment":
            return {"torch": {}}
        names = ("fp_top1", "top1", "top5", "drop", "top1_se", "agreement", "peak_mib", "seconds")
        facts: dict[str, Any] = {"correct": "", "coverage": None, "levels_ok": True, "violations": []}
        numbers = dict.fromkeys(names, 90.0) | {"drop": 0.0, "top1_se": 1.29}
        return numbers | facts | self.changes

    def kill(self) -> None:
        pass


class Executor:
    """Hands jobs to a function of the test."""

    in_process = False

    def __init__(
        self, work: Callable[[Job, OnEvent, Cancellation], Outcome], slots: int = 2, evaluator: Evaluator | None = None
    ) -> None:
        self.slots = [Slot(number) for number in range(slots)]
        self.jobs: list[Job] = []
        self.asked = evaluator or Evaluator()
        self._work = work

    @property
    def order(self) -> list[str]:
        return [f"{job.method} {job.scheme['w_bits']}" for job in self.jobs]

    def run(self, job: Job, slot: Slot, on_event: OnEvent, cancellation: Cancellation) -> Outcome:
        self.jobs.append(job)
        return self._work(job, on_event, cancellation)

    def evaluator(self, slot: Slot) -> Evaluator:
        return self.asked

    def close(self) -> None:
        pass


def plan_of(
    methods: str,
    bits: str | None = None,
    plugins: Plugins | None = None,
    *,
    grid: str = "smoke",
    data: Sequence[Path] = (),
    **selection: Any,
) -> Plan:
    plugins = plugins or load_plugins()
    selected = apply(load_grid(grid, plugins), parse_selection(methods=methods, bits=bits, **selection))
    # One thread, so that two jobs fit on two cores.
    return build_plan(selected.model_copy(update={"threads": 1}), Catalogue.discover(data), plugins)


def one_image_target(folder: Path) -> str:
    """Write an ImageNet of one image, without training split and weights, and return its name."""
    (folder / "val" / "n01440764").mkdir(parents=True)
    (folder / "val" / "n01440764" / "a.JPEG").write_bytes(b"0")
    return next(name for name in Catalogue.discover([folder]).names() if name.startswith("imagenet-"))


def schedule(
    folder: Path,
    plan: Plan,
    executor: Executor,
    cancellation: Cancellation | None = None,
    rules: Rules | None = None,
    *,
    plugins: Plugins | None = None,
    description: Mapping[str, Any] | None = None,
) -> Summary:
    env = RunEnvironment(RunFolder(folder), plugins or load_plugins(), "cpu", rules, description=description)
    return Scheduler(env, executor, Display(Console(quiet=True), 1), History([]), cancellation).run(plan.cells)


def run_smoke(
    out: Path,
    methods: str,
    cancellation: Cancellation | None = None,
    *,
    bits: str | None = None,
    limit: int | None = 60,
    settings: Sequence[str] = (),
    plugin_files: Sequence[Path] = (),
    **options: Any,
) -> Summary:
    """A whole run of the `smoke` grid."""
    plugins = load_plugins(plugin_files)
    plan = plan_of(methods, bits, plugins, limit=limit, settings=settings)
    return run_plan(
        plan, plugins, Options(out, None, "cpu", **{"jobs": 1} | options), Console(quiet=True), cancellation
    )[0]


def done(**result: Any) -> Outcome:
    return Outcome("ok", result={"seconds": {}} | result)
