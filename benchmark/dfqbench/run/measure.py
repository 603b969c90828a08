"""One attempt at a cell or at several of one source: the worker, the evaluation, and the record of both."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dfqbench.api.errors import DfqError
from dfqbench.grid.choice import REAL
from dfqbench.run.cell import Cell
from dfqbench.run.executor import EvaluationTimeoutError, EvaluatorClient, Executor, OnEvent, Slot
from dfqbench.run.identity import derived_seed
from dfqbench.run.job import Outcome
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
    runner: Runner, cells: Sequence[Cell], slot: Slot, *, executor: Executor, stop: Stop, on_event: OnEvent
) -> list[dict[str, Any] | None]:
    """Makes one attempt at a cell, and at partners that its worker may take along, and writes their records.

    Args:
        runner: knows the run.
        cells: a cell that can run, and its partners: cells that differ from it in the scheme only.
        slot: where.
        executor: carries out jobs.
        stop: whether to stop.
        on_event: is told of phases and progress.

    Returns:
        The records; None for a cell that was not run, and has to run by itself.

    Raises:
        OSError: the results folder cannot be written.
    """
    evaluator = executor.evaluator(slot)
    group = [_Measurement(runner, cell, evaluator, stop) for cell in cells]
    leader, partners = group[0], group[1:]
    for one in group:
        one.together_with = [cell.cell_id for cell in cells if cell is not one.cell]
    how = "alone"

    def listen(event: Mapping[str, Any]) -> None:
        nonlocal how
        if event.get("event") == "warning":
            leader.warnings.append(str(event.get("message")))
        if event.get("event") == "together":
            how = str(event.get("how"))
            if how == "alone":
                leader.together_with = []
                _drop(partners)
        on_event(event)

    if not leader.prepare():
        _drop(partners)
        return [leader.written(), *(None for _ in partners)]
    for partner in partners:
        partner.baseline = leader.baseline
    begin = time.monotonic()
    outcome = executor.run(runner.job([(one.cell, one.folder) for one in group], begin), slot, listen, stop)
    spent = time.monotonic() - begin
    if how != "alone" and (outcome.status == "oom" or (outcome.died and outcome.status == "failed")):
        # One of them has taken the others along: which one shows when each has a worker of its own.
        on_event({"event": "warning", "message": f"{(outcome.error or {})['message']}; its cells run one by one"})
        _drop(group)
        return [None for _ in group]
    ended = [outcome, *outcome.partners, *[None] * (len(partners) - len(outcome.partners))]
    ended[1:] = [None if one is None or one.status == "oom" else one for one in ended[1:]]
    walls = [0.0 if one is None else float(one.result.get("wall", 0.0)) for one in ended]
    walls[0] = spent - sum(walls[1:])
    on_event({"event": "phase", "name": "evaluation"})
    records: list[dict[str, Any] | None] = []
    for one, its_outcome, wall in zip(group, ended, walls, strict=True):
        if its_outcome is None:
            one.drop()
        records.append(None if its_outcome is None else one.measured(its_outcome, wall, on_event))
    return records


def _drop(measurements: Iterable[_Measurement]) -> None:
    for one in measurements:
        one.drop()


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
    """Takes one attempt from the full-precision network to the judged record.

    Attributes:
        cell: the cell.
        folder: the attempt's.
        warnings: what the worker and the host warned of.
        together_with: the other cells of its worker.
        baseline: what the evaluator said of the full-precision network; set by `prepare`, the same for partners.
    """

    def __init__(self, runner: Runner, cell: Cell, evaluator: EvaluatorClient, stop: Stop) -> None:
        self.cell = cell
        self.warnings: list[str] = []
        self.together_with: list[str] = []
        self.baseline: dict[str, Any] = {}
        self._dropped = False
        self.folder, number = runner.folder.new_attempt(cell.cell_id)
        self._runner = runner
        self._record = blank(cell, runner.header(number))
        self._evaluator = evaluator
        self._stop = stop
        self._request = runner.request(cell, self.folder)

    def prepare(self) -> bool:
        """Measures the full-precision network, and makes the real-data control's images; whether that went well."""
        return self._guarded(self._prepared)

    def measured(self, outcome: Outcome, wall: float, on_event: OnEvent) -> dict[str, Any]:
        """Evaluates the student that a worker has left, and writes the record.

        Args:
            outcome: how the worker ended.
            wall: seconds that it took for this cell.
            on_event: is told of phases.
        """
        self._record["together_with"] = self.together_with
        begin = time.monotonic()

        def until_now() -> float:
            return wall + time.monotonic() - begin

        if not self._guarded(lambda: self._evaluated(outcome, until_now, on_event)) and "seconds" not in self._record:
            add_cost(self._record, outcome, 0.0, until_now())
        return self.written()

    def written(self) -> dict[str, Any]:
        """Writes the record."""
        record = self._record
        stopped = self._stop.reason is not None
        if stopped and record["status"] == "failed" and record["error"]["type"] == "EvaluatorDiedError":
            message = "the run was stopped during the evaluation"
            close(record, "preempted", {"type": "Preempted", "message": message, "phase": "evaluation"})
        record["warnings"] = self.warnings
        _write_traceback(record, self.folder)
        self._runner.folder.write_record(self.folder, record)
        if record["status"] in MEASURED or record["status"] == "invalid":
            # Nothing is left to go on from; optimizers and earlier states are dropped.
            shutil.rmtree(self._runner.folder.checkpoints(self.cell.cell_id), ignore_errors=True)
        return record

    def drop(self) -> None:
        """Leaves no attempt behind: the cell was not run."""
        if not self._dropped:
            # Once only: the next attempt may have taken the same number.
            self._dropped = True
            shutil.rmtree(self.folder, ignore_errors=True)

    def _guarded(self, act: Callable[[], bool]) -> bool:
        try:
            return act()
        except EvaluationTimeoutError as error:
            close(self._record, "timeout", _described(error))
        except DfqError as error:
            close(self._record, "failed", _described(error))
        return False

    def _prepared(self) -> bool:
        self.baseline = self._ask("baseline")
        if "error" in self.baseline:
            close(self._record, self.baseline["status"], self.baseline["error"] | {"phase": "setup"})
            return False
        self._runner.describe_torch(self._evaluator)
        if self.cell.method.name == REAL:
            prepared = self._prepare_real()
            if "error" in prepared:
                close(self._record, prepared["status"], prepared["error"] | {"phase": "synthesis"})
                return False
        return True

    def _evaluated(self, outcome: Outcome, wall: Callable[[], float], on_event: OnEvent) -> bool:
        record, cell = self._record, self.cell
        if outcome.status != "ok":
            close(record, outcome.status, outcome.error)
            return False
        found = outcome.result.get("evaluation") or self._ask("evaluate")
        if "error" in found:
            close(record, found.get("status", "failed"), found["error"] | {"phase": "evaluation"})
            return False
        # The full-precision network was measured once, before, and belongs to no cell.
        add_accuracy(record, self.baseline, found)
        add_cost(record, outcome, float(found["seconds"]), wall())
        record["peak_mib"]["evaluation"] = found["peak_mib"]
        if self._runner.rules.oracle:
            # After the account is closed: looking at the evaluation set more often is no part of any method.
            on_event({"event": "phase", "name": "oracle"})
            answer = self._ask("snapshots")
            if "error" in answer:
                close(record, answer.get("status", "failed"), answer["error"] | {"phase": "oracle"})
                return False
            add_curve(record, answer["curve"])
        if cell.model is not None and cell.model.random_seed is not None:
            record["flags"].append("random_weights")
        _judged(record, cell.dataset.classes)
        return True

    def _prepare_real(self) -> dict[str, Any]:
        folder = self._runner.folder.source(self.cell.source_id)
        if is_saved(folder, self._runner.accepted):
            return {}
        facts = {
            "count": self.cell.method.params["images"],
            "seed": derived_seed(self.cell.seed_key, "real"),
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
