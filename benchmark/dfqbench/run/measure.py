"""One attempt at a cell: the worker, the evaluation, and the record of both."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dfqbench.api.errors import DfqError
from dfqbench.grid.choice import REAL
from dfqbench.run.cell import Cell
from dfqbench.run.executor import EvaluationTimeoutError, EvaluatorClient, Executor, OnEvent, Slot
from dfqbench.run.identity import derived_seed
from dfqbench.run.record import add_accuracy, add_cost, add_curve, blank, close
from dfqbench.run.saved import is_saved
from dfqbench.run.statuses import MEASURED
from dfqbench.run.stop import Stop

if TYPE_CHECKING:
    from dfqbench.run.runner import Runner

TRACEBACK = "traceback.txt"
CHANCE_ERRORS = 2.0
"""Binomial standard errors above guessing up to which a student is said to guess."""


def attempt(
    runner: Runner, cell: Cell, slot: Slot, *, executor: Executor, stop: Stop, on_event: OnEvent
) -> dict[str, Any]:
    """Makes one attempt at a cell and writes its record.

    Args:
        runner: knows the run.
        cell: a cell that can run.
        slot: where.
        executor: carries out jobs.
        stop: whether to stop.
        on_event: is told of phases and progress.

    Raises:
        OSError: the results folder cannot be written.
    """
    folder, number = runner.folder.new_attempt(cell.cell_id)
    record = blank(cell, runner.header(number))
    warnings: list[str] = []

    def listen(event: Mapping[str, Any]) -> None:
        if event.get("event") == "warning":
            warnings.append(str(event.get("message")))
        on_event(event)

    evaluator = executor.evaluator(slot)
    try:
        record = _Measurement(runner, cell, record, folder, evaluator).run(
            lambda job: executor.run(job, slot, listen, stop), listen
        )
    except EvaluationTimeoutError as error:
        record = close(record, "timeout", _described(error))
    except DfqError as error:
        record = close(record, "failed", _described(error))
    if stop.reason is not None and record["status"] == "failed" and record["error"]["type"] == "EvaluatorDiedError":
        message = "the run was stopped during the evaluation"
        record = close(record, "preempted", {"type": "Preempted", "message": message, "phase": "evaluation"})
    record["warnings"] = warnings
    _write_traceback(record, folder)
    runner.folder.write_record(folder, record)
    if record["status"] in MEASURED or record["status"] == "invalid":
        # Nothing is left to go on from; optimizers and earlier states are dropped.
        shutil.rmtree(runner.folder.checkpoints(cell.cell_id), ignore_errors=True)
    return record


def without_running(runner: Runner, cell: Cell) -> dict[str, Any]:
    """The record of a cell that cannot run; a new one only where the reason is new."""
    problem = cell.problem
    if problem is None:
        raise ValueError("the cell can run")
    error = {"type": problem.status, "message": problem.message, "phase": "plan"}
    before = runner.folder.latest(cell.cell_id)
    said = None if before is None else (before["status"], (before.get("error") or {}).get("message"))
    if before is not None and said == (problem.status, problem.message):
        return before
    folder, number = runner.folder.new_attempt(cell.cell_id)
    record = close(blank(cell, runner.header(number)), problem.status, error)
    runner.folder.write_record(folder, record)
    return record


class _Measurement:
    """Takes one attempt from the full-precision network to the judged record."""

    def __init__(
        self, runner: Runner, cell: Cell, record: dict[str, Any], folder: Path, evaluator: EvaluatorClient
    ) -> None:
        self._runner = runner
        self._cell = cell
        self._record = record
        self._folder = folder
        self._evaluator = evaluator
        self._request = runner.request(cell, folder)

    def run(self, carry_out: Callable[[Any], Any], on_event: OnEvent) -> dict[str, Any]:
        record, cell = self._record, self._cell
        baseline = self._ask("baseline")
        if "error" in baseline:
            return close(record, baseline["status"], baseline["error"] | {"phase": "setup"})
        self._runner.describe_torch(self._evaluator)
        if cell.method.name == REAL:
            prepared = self._prepare_real()
            if "error" in prepared:
                return close(record, prepared["status"], prepared["error"] | {"phase": "synthesis"})
        # The full-precision network is measured once a run and belongs to no cell.
        begin = time.monotonic()
        outcome = carry_out(self._runner.job(cell, self._folder, begin))
        if outcome.status != "ok":
            add_cost(record, outcome, 0.0, time.monotonic() - begin)
            return close(record, outcome.status, outcome.error)
        on_event({"event": "phase", "name": "evaluation"})
        found = outcome.result.get("evaluation") or self._ask("evaluate")
        if "error" in found:
            add_cost(record, outcome, 0.0, time.monotonic() - begin)
            return close(record, found.get("status", "failed"), found["error"] | {"phase": "evaluation"})
        add_accuracy(record, baseline, found)
        add_cost(record, outcome, float(found["seconds"]), time.monotonic() - begin)
        record["peak_mib"]["evaluation"] = found["peak_mib"]
        if self._runner.rules.oracle:
            # After the account is closed: looking at the evaluation set more often is no part of any method.
            on_event({"event": "phase", "name": "oracle"})
            answer = self._ask("snapshots")
            if "error" in answer:
                return close(record, answer.get("status", "failed"), answer["error"] | {"phase": "oracle"})
            add_curve(record, answer["curve"])
        if cell.model is not None and cell.model.random_seed is not None:
            record["flags"].append("random_weights")
        return _judged(record, cell.dataset.classes)

    def _prepare_real(self) -> dict[str, Any]:
        folder = self._runner.folder.source(self._cell.source_id)
        if is_saved(folder, self._runner.accepted):
            return {}
        facts = {
            "count": self._cell.method.params["images"],
            "seed": derived_seed(self._cell.seed_key, "real"),
            "source": str(folder),
            "environment": self._runner.environment,
        }
        return self._ask("real", **facts)

    def _ask(self, operation: str, **facts: Any) -> dict[str, Any]:
        request = self._request | facts | {"op": operation}
        return self._evaluator.ask(request, self._runner.rules.evaluation_limit)


def _judged(record: dict[str, Any], classes: int) -> dict[str, Any]:
    """Ends a measured record: invalid where it breaks a rule, collapsed where the student only guesses."""
    reasons = []
    if record["real_data_opened"]:
        reasons.append(f"plugin code opened real data: {record['real_data_opened'][0]}")
    if record["wrote_outside"]:
        reasons.append(f"plugin code wrote into the results outside its folder: {record['wrote_outside'][0]}")
    if record["violations"]:
        reasons.append(f"claimed operands are off their grid: {', '.join(record['violations'][:3])}")
    if reasons:
        return close(record, "invalid", {"type": "Invalid", "message": "; ".join(reasons), "phase": "checks"})
    limit = chance_limit(classes, int(record["dataset"]["n"]))
    if record["top1"] <= limit < record["fp_top1"]:
        message = f"top-1 {record['top1']:.2f} is no better than guessing one of {classes} classes"
        return close(record, "collapsed", {"type": "Collapsed", "message": message, "phase": "evaluation"})
    return close(record, "ok")


def chance_limit(classes: int, images: int) -> float:
    """Top-1 in percent up to which a student is said to guess: chance and two standard errors of it."""
    chance = 1.0 / classes
    return 100.0 * (chance + CHANCE_ERRORS * math.sqrt(chance * (1.0 - chance) / images))


def _write_traceback(record: dict[str, Any], folder: Path) -> None:
    error = record.get("error") or {}
    if error.get("traceback"):
        (folder / TRACEBACK).write_text(str(error["traceback"]), encoding="utf-8")
        error["traceback_file"] = TRACEBACK


def _described(error: DfqError) -> dict[str, Any]:
    return {"type": type(error).__name__, "message": str(error), "phase": "evaluation", "traceback": ""}
