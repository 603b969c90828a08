"""One attempt at a cell or at several of one source: the worker, the evaluation, and the record of both."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dfqbench.api.errors import DfqError
from dfqbench.plugins.registry import REAL
from dfqbench.run.execute.cancellation import Stop
from dfqbench.run.execute.events import Event, Phase, PhaseStarted, SharedJob, Sharing, Warned
from dfqbench.run.execute.executor import EvaluationTimeoutError, EvaluatorClient, Executor, OnEvent, Slot
from dfqbench.run.execute.job import Outcome
from dfqbench.run.plan.cell import Cell
from dfqbench.run.plan.identity import derived_seed
from dfqbench.run.store.record import Error, Record
from dfqbench.run.store.record.build import add_accuracy, add_cost, add_curve, blank, close, error_of
from dfqbench.run.store.source_cache import is_saved
from dfqbench.run.store.status import MEASURED
from dfqbench.run.store.student_cache import KnownStudent

if TYPE_CHECKING:
    from dfqbench.run.schedule.runner import Runner

TRACEBACK = "traceback.txt"
CHANCE_ERRORS = 2.0
"""Binomial standard errors above guessing up to which a student is said to guess."""


def attempt(
    runner: Runner, cells: Sequence[Cell], slot: Slot, *, executor: Executor, stop: Stop, on_event: OnEvent
) -> list[Record | None]:
    """Makes one attempt at a cell, and at partners that its worker may take along, and writes their records.

    Args:
        runner: knows the run.
        cells: a cell that can run, and its partners: cells that differ from it in the scheme only.
        slot: where.
        executor: carries out jobs.
        stop: whether to stop.
        on_event: takes the worker's events, and those of the evaluation.

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
    sharing = Sharing.ALONE

    def note(event: Event) -> None:
        nonlocal sharing
        match event:
            case Warned(message):
                leader.warnings.append(message)
            case SharedJob():
                sharing = event.sharing
                if sharing is Sharing.ALONE:
                    leader.together_with = []
                    _drop(partners)
            case _:
                pass
        on_event(event)

    if not leader.prepare():
        _drop(partners)
        return [leader.written(), *(None for _ in partners)]
    for partner in partners:
        partner.baseline = leader.baseline
    begin = time.monotonic()
    outcome = executor.run(runner.job([(one.cell, one.folder) for one in group], begin), slot, note, stop)
    spent = time.monotonic() - begin
    if sharing is not Sharing.ALONE and (outcome.status == "oom" or (outcome.died and outcome.status == "failed")):
        # One of them has taken the others along: which one shows when each has a worker of its own.
        on_event(Warned(f"{(outcome.error or {})['message']}; its cells run one by one"))
        _drop(group)
        return [None for _ in group]
    ended = [outcome, *outcome.partners, *[None] * (len(partners) - len(outcome.partners))]
    ended[1:] = [None if one is None or one.status == "oom" else one for one in ended[1:]]
    walls = [0.0 if one is None else float(one.result.get("wall", 0.0)) for one in ended]
    walls[0] = spent - sum(walls[1:])
    on_event(PhaseStarted(Phase.EVALUATION))
    for one, its_outcome, wall in zip(group, ended, walls, strict=True):
        if its_outcome is None:
            one.drop()
        else:
            one.trained(its_outcome, wall)
    evaluate([one for one, its_outcome in zip(group, ended, strict=True) if its_outcome is not None])
    return [None if its_outcome is None else one.written() for one, its_outcome in zip(group, ended, strict=True)]


def evaluate_known(
    runner: Runner, found: Sequence[tuple[Cell, KnownStudent]], slot: Slot, *, executor: Executor, stop: Stop
) -> list[Record]:
    """Makes records of cells whose students another cell of the run's folder has left, in one pass over the data.

    Args:
        runner: knows the run.
        found: cells of one network and one evaluation set, each with its student.
        slot: where.
        executor: has the evaluator.
        stop: whether to stop.

    Returns:
        The records, in the same order.

    Raises:
        OSError: the results folder cannot be written.
    """
    evaluator = executor.evaluator(slot)
    group = [_Measurement(runner, cell, evaluator, stop) for cell, _ in found]
    leader = group[0]
    if leader.prepare():
        for one, (_, student) in zip(group, found, strict=True):
            one.baseline = leader.baseline
            one.take_over(student)
        evaluate(group)
        return [one.written() for one in group]
    _drop(group[1:])
    return [leader.written()]


def evaluate(trained: Sequence[_Measurement]) -> None:
    """Evaluates the students that are there, all in one pass over the data, and closes their records.

    Args:
        trained: attempts of one network and one evaluation set, after `trained` or `take_over`.
    """
    ready = [one for one in trained if one.waits]
    begin = time.monotonic()
    try:
        answers = ready[0].ask_of([one.folder for one in ready]) if ready else []
    except DfqError as error:
        answers = [error for _ in ready]
    # Reading the data is everybody's; a student that takes longer than another one of the same network is rare.
    seconds = (time.monotonic() - begin) / max(1, len(ready))
    for one, answer in zip(ready, answers, strict=True):
        one.evaluated(answer, seconds)


def _drop(measurements: Iterable[_Measurement]) -> None:
    for one in measurements:
        one.drop()


def without_running(runner: Runner, cell: Cell) -> Record:
    """The record of a cell that cannot run; a new one only where the reason is new."""
    problem = cell.problem
    if problem is None:
        raise ValueError("the cell can run")
    error = Error(type=problem.status, message=problem.message, phase="plan")
    before = runner.folder.latest(cell.cell_id)
    if before is not None and (before.status, before.error) == (problem.status, error):
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
        self._outcome: Outcome | None = None
        self._wall = 0.0
        self.folder, number = runner.folder.new_attempt(cell.cell_id)
        self._runner = runner
        self._record = blank(cell, runner.header(number))
        self._evaluator = evaluator
        self._stop = stop
        self._request = runner.request(cell, self.folder)

    def prepare(self) -> bool:
        """Measures the full-precision network, and makes the real-data control's images; whether that went well."""
        return self._guarded(self._prepared)

    @property
    def waits(self) -> bool:
        """Whether a student waits to be evaluated."""
        return self._outcome is not None and self._outcome.status == "ok" and self._record.seconds.wall is None

    def trained(self, outcome: Outcome, wall: float) -> None:
        """Takes what a worker has left.

        Args:
            outcome: how it ended.
            wall: seconds that it took for this cell.
        """
        self._record.together_with = self.together_with
        self._outcome, self._wall = outcome, wall
        if outcome.status != "ok":
            add_cost(self._record, outcome, 0.0, wall)
            close(self._record, outcome.status, error_of(outcome.error))
        elif outcome.result.get("evaluation"):
            own = outcome.result["evaluation"]
            self.evaluated(own, float(own["seconds"]), inside=True)

    def take_over(self, student: KnownStudent) -> None:
        """Takes the student and the account of another cell's attempt."""
        student.copy_to(self.folder)
        self._record.together_with = student.record.together_with
        self._record.student_from = student.origin
        self.warnings += student.record.warnings
        self._outcome, self._wall = student.outcome(), student.wall()

    def evaluated(self, answer: Mapping[str, Any] | DfqError, seconds: float, *, inside: bool = False) -> None:
        """Takes the evaluator's answer, or what kept it from answering, and closes the record.

        Args:
            answer: what it said of the student.
            seconds: what the evaluation took.
            inside: whether these are part of the worker's already.
        """
        if self._outcome is None:
            raise ValueError("nothing was trained")
        add_cost(self._record, self._outcome, seconds, self._wall + (0.0 if inside else seconds))
        if isinstance(answer, DfqError):
            status = "timeout" if isinstance(answer, EvaluationTimeoutError) else "failed"
            close(self._record, status, _described(answer))
        elif "error" in answer:
            close(self._record, answer.get("status", "failed"), error_of(answer["error"], "evaluation"))
        else:
            self._guarded(lambda: self._judge(answer))

    def written(self) -> Record:
        """Writes the record."""
        record = self._record
        stopped = self._stop.reason is not None
        died = record.error is not None and record.error.type == "EvaluatorDiedError"
        if stopped and record.status == "failed" and died:
            message = "the run was stopped during the evaluation"
            close(record, "preempted", Error(type="Preempted", message=message, phase="evaluation"))
        record.warnings = self.warnings
        _write_traceback(record, self.folder)
        self._runner.folder.write_record(self.folder, record)
        if record.status in MEASURED or record.status == "invalid":
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
            close(self._record, self.baseline["status"], error_of(self.baseline["error"], "setup"))
            return False
        self._runner.describe_torch(self._evaluator)
        if self.cell.method.name == REAL:
            prepared = self._prepare_real()
            if "error" in prepared:
                close(self._record, prepared["status"], error_of(prepared["error"], "synthesis"))
                return False
        return True

    def _judge(self, answer: Mapping[str, Any]) -> bool:
        record, cell = self._record, self.cell
        # The full-precision network was measured once, before, and belongs to no cell.
        add_accuracy(record, self.baseline, answer)
        if self._runner.rules.oracle:
            # After the account is closed: looking at the evaluation set more often is no part of any method.
            found = self._ask("snapshots")
            if "error" in found:
                close(record, found.get("status", "failed"), error_of(found["error"], "oracle"))
                return False
            add_curve(record, found["curve"])
        if cell.model is not None and cell.model.random_seed is not None:
            record.flags.append("random_weights")
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

    def ask_of(self, folders: Sequence[Path]) -> list[dict[str, Any] | DfqError]:
        """What the evaluator says of the students of several attempts at this cell's network and evaluation set.

        Raises:
            EvaluatorDiedError: it ended, or took longer than the limit for each of them.
        """
        found = self._ask("evaluate", len(folders), attempts=[str(folder) for folder in folders])
        return list(found["students"]) if "students" in found else [found for _ in folders]

    def _ask(self, operation: str, answers: int = 1, **facts: Any) -> dict[str, Any]:
        request = self._request | facts | {"op": operation}
        return self._evaluator.ask(request, self._runner.rules.evaluation_limit * answers)


def _judged(record: Record, classes: int) -> Record:
    """Ends a measured record: invalid where it breaks a rule, collapsed where the student only guesses."""
    reasons = []
    if record.real_data_opened:
        reasons.append(f"plugin code opened real data: {record.real_data_opened[0]}")
    if record.wrote_outside:
        reasons.append(f"plugin code wrote into the results outside its folder: {record.wrote_outside[0]}")
    if record.violations:
        reasons.append(f"claimed operands are off their grid: {', '.join(record.violations[:3])}")
    if reasons:
        return close(record, "invalid", Error(type="Invalid", message="; ".join(reasons), phase="checks"))
    top1, full, images = record.top1, record.fp_top1, record.dataset.n
    if top1 is not None and full is not None and images and top1 <= chance_limit(classes, images) < full:
        message = f"top-1 {top1:.2f} is no better than guessing one of {classes} classes"
        return close(record, "collapsed", Error(type="Collapsed", message=message, phase="evaluation"))
    return close(record, "ok")


def chance_limit(classes: int, images: int) -> float:
    """Top-1 in percent up to which a student is said to guess: chance and two standard errors of it."""
    chance = 1.0 / classes
    return 100.0 * (chance + CHANCE_ERRORS * math.sqrt(chance * (1.0 - chance) / images))


def _write_traceback(record: Record, folder: Path) -> None:
    if record.error is not None and record.error.traceback:
        (folder / TRACEBACK).write_text(record.error.traceback, encoding="utf-8")
        record.error.traceback_file = TRACEBACK


def _described(error: DfqError) -> Error:
    return Error(type=type(error).__name__, message=str(error), phase="evaluation", traceback="")
