"""One attempt at the cells of a job: the worker, the evaluation, and the records of both."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import zip_longest
from typing import Any

from dfqbench.api.errors import DfqError
from dfqbench.plugins.registry import REAL
from dfqbench.run.execute.cancellation import Cancellation
from dfqbench.run.execute.events import Event, Phase, PhaseStarted, Progress, SharedJob, Sharing, Warned
from dfqbench.run.execute.job import EvaluationTimeoutError, EvaluatorClient, Executor, OnEvent, Outcome, Slot
from dfqbench.run.plan.cell import Cell
from dfqbench.run.plan.identity import derived_seed
from dfqbench.run.schedule.measured import (
    add_accuracy,
    add_cost,
    add_curve,
    close_measured,
    close_unmeasured,
    error_of,
)
from dfqbench.run.schedule.queue import Lease
from dfqbench.run.schedule.run_environment import RunEnvironment
from dfqbench.run.store.files import TRACEBACK_FILE, reclaim, valid, write_text
from dfqbench.run.store.record import Record
from dfqbench.run.store.record_parts import Error, Origin
from dfqbench.run.store.run_folder import RANDOM_WEIGHTS, CachedStudent
from dfqbench.run.store.status import MEASURED, SETTLED

MOST_WARNINGS = 100
"""Warnings that a record keeps."""


def run_job(
    env: RunEnvironment,
    lease: Lease,
    slot: Slot,
    *,
    executor: Executor,
    cancellation: Cancellation,
    on_event: OnEvent,
) -> list[Record | None]:
    """Make one attempt at leased runnable cells that differ in the scheme only, in one worker, and write their records.

    Returns:
        The records; None for a cell that was not run, and must run by itself, or whose lease was lost.

    Raises:
        OSError: the results folder cannot be written.
    """
    cells = list(lease.cells)
    runs = [
        CellRun(env, cell, executor.evaluator(slot), cancellation=cancellation, on_event=on_event, holds=lease.holds)
        for cell in cells
    ]
    first, others = runs[0], runs[1:]
    sharing = Sharing.ALONE

    def handle(event: Event) -> None:
        nonlocal sharing
        if isinstance(event, Warned):
            first.warnings.append(event.message)
        elif isinstance(event, SharedJob):
            sharing = event.sharing
            if sharing is Sharing.ALONE:
                _discard(others)
            else:
                for run in runs:
                    run.together_with = [cell.cell_id for cell in cells if cell is not run.cell]
        on_event(event)

    if not first.prepare():
        _discard(others)
        return [first.write(), *(None for _ in others)]
    for run in others:
        run.baseline = first.baseline
    begin = time.monotonic()
    file, token = lease.first
    job = replace(env.job([(run.cell, run.folder) for run in runs], begin), lease=file, lease_token=token)
    outcome = executor.run(job, slot, handle, cancellation)
    spent = time.monotonic() - begin
    if sharing is not Sharing.ALONE and (outcome.status == "oom" or (outcome.died and outcome.status == "failed")):
        # One cell has ended the worker of all; which one shows when each has a worker of its own.
        on_event(Warned(f"{(outcome.error or {})['message']}; its cells run one by one"))
        _discard(runs)
        return [None for _ in runs]
    members = [None if member is None or member.status == "oom" else member for member in outcome.members]
    walls = [0.0 if member is None else float(member.result.get("wall", 0.0)) for member in members]
    on_event(PhaseStarted(Phase.EVALUATION))
    first.trained(outcome, spent - sum(walls))
    ended = [first]
    for run, member, wall in zip_longest(others, members, walls):
        if member is None:
            run.discard()
        else:
            run.trained(member, wall)
            ended.append(run)
    evaluate(ended)
    return [run.write() if run in ended else None for run in runs]


def evaluate_cached(
    env: RunEnvironment,
    lease: Lease,
    students: Mapping[str, CachedStudent],
    *,
    evaluator: EvaluatorClient,
    cancellation: Cancellation,
    on_event: OnEvent,
) -> list[Record | None]:
    """Make records of leased cells of one network and one evaluation set, whose students are trained, in one pass.

    Returns:
        The records, in the same order, None where a lease was lost; that of the first cell only, where the
        full-precision network fails.

    Raises:
        OSError: the results folder cannot be written.
    """
    runs = [
        CellRun(env, cell, evaluator, cancellation=cancellation, on_event=on_event, holds=lease.holds)
        for cell in lease.cells
    ]
    if not runs[0].prepare():
        _discard(runs[1:])
        return [runs[0].write()]
    for run in runs:
        run.baseline = runs[0].baseline
        run.use_cached(students[run.cell.student_id])
    evaluate(runs)
    return [run.write() for run in runs]


def evaluate(runs: Sequence[CellRun]) -> None:
    """Evaluate the trained students of one network and one evaluation set in one pass, and close their records."""
    runs = [run for run in runs if run.awaits_evaluation]
    if not runs:
        return
    begin = time.monotonic()
    try:
        answers = runs[0].ask_about(runs)
    except DfqError as error:
        answers = [error for _ in runs]
    seconds = (time.monotonic() - begin) / len(runs)
    for run, answer in zip(runs, answers, strict=True):
        run.evaluated(answer, seconds)


class CellRun:
    """One attempt at a cell, from the full-precision network to the record.

    Attributes:
        folder: the attempt's.
        warnings: of the worker and the host.
        together_with: the other cells of its worker.
        baseline: the evaluator's answer about the full-precision network; set by `prepare`, or from another cell's.

    Args:
        holds: checks that this run still has the cell's lease.
    """

    def __init__(
        self,
        env: RunEnvironment,
        cell: Cell,
        evaluator: EvaluatorClient,
        *,
        cancellation: Cancellation,
        on_event: OnEvent,
        holds: Callable[[Cell], bool],
    ) -> None:
        self.cell = cell
        self.warnings: list[str] = []
        self.together_with: list[str] = []
        self.baseline: dict[str, Any] = {}
        self._env = env
        self._evaluator = evaluator
        self._cancellation = cancellation
        self._on_event = on_event
        self._holds = holds
        self._earlier = env.folder.newest_recorded(cell.cell_id)
        self.folder, number = env.folder.new_attempt(cell.cell_id)
        self._record = env.new_record(cell, number)
        self._request = env.request(cell, self.folder)
        self._outcome: Outcome | None = None
        self._wall = 0.0
        self._discarded = False

    def prepare(self) -> bool:
        """Measure the full-precision network, and make the real-data control's images; return False if that failed."""
        with self._failures_recorded():
            self.baseline = _checked(self._ask("baseline"), "setup")
            self._env.describe_torch(self._evaluator)
            if self.cell.method.name == REAL and not self._env.saved_sources([self.cell]):
                arguments = {
                    "count": self.cell.method.params["images"],
                    "seed": derived_seed(self.cell.seed_key, "real"),
                    "source": str(self._env.folder.source(self.cell.source_id)),
                    "environment": self._env.environment,
                }
                _checked(self._ask("real", **arguments), "synthesis")
        return self._record.error is None

    @property
    def awaits_evaluation(self) -> bool:
        """Whether there is a student that has not been evaluated."""
        return self._outcome is not None and self._outcome.status == "ok" and self._record.seconds.wall is None

    def trained(self, outcome: Outcome, wall: float) -> None:
        """Take the outcome of the worker, and its seconds for this cell."""
        self._record.together_with = self.together_with
        if (damage := reclaim(self.folder)) and outcome.status in {"ok", "failed"}:
            error = {"type": "PluginError", "message": f"plugin code {damage}; it may write to ctx.workdir only"}
            outcome = replace(outcome, status="failed", error=(outcome.error or {}) | error)
        self._outcome, self._wall = outcome, wall
        if outcome.status != "ok":
            add_cost(self._record, outcome, 0.0, wall)
            close_unmeasured(self._record, outcome)
        elif answer := outcome.result.get("evaluation"):
            self.evaluated(answer, float(answer["seconds"]), inside=True)

    def use_cached(self, student: CachedStudent) -> None:
        """Use the student and the costs of another cell's attempt."""
        student.copy_to(self.folder)
        record = student.record
        self._record.together_with = record.together_with
        self._record.student_from = Origin(cell_id=record.cell_id, attempt=record.attempt)
        self.warnings += record.warnings
        self._outcome, self._wall = student.outcome(), student.wall

    def evaluated(self, answer: Mapping[str, Any] | DfqError, seconds: float, *, inside: bool = False) -> None:
        """Take the evaluator's answer about the student, or an error, and close the record.

        Args:
            answer: the answer, or the error in its place.
            seconds: of the evaluation.
            inside: whether these are part of the worker's.
        """
        if self._outcome is None:
            raise ValueError("nothing was trained")
        add_cost(self._record, self._outcome, seconds, self._wall + (0.0 if inside else seconds))
        with self._failures_recorded():
            if isinstance(answer, DfqError):
                raise answer
            add_accuracy(self._record, self.baseline, _checked(answer, "evaluation"))
            if self._env.rules.oracle:
                # After the costs: evaluating more often is no part of any method.
                add_curve(self._record, _checked(self._ask("snapshots"), "oracle")["curve"])
            if self.cell.model is not None and self.cell.model.random_seed is not None:
                self._record.flags.append(RANDOM_WEIGHTS)
            close_measured(self._record, self.cell.dataset.classes)

    def write(self) -> Record | None:
        """Write the record and return it; discard the attempt where another run has taken the cell over."""
        if not self._holds(self.cell):
            self._give_up()
            return None
        record, folder = self._record, self._env.folder
        died = record.error is not None and record.error.type == "EvaluatorDiedError"
        if self._cancellation.reason is not None and record.status == "failed" and died:
            message = "the run was stopped during the evaluation"
            record.close("preempted", Error(type="Preempted", message=message, phase="evaluation"))
        record.warnings = self.warnings
        if len(self.warnings) > MOST_WARNINGS:
            record.warnings = [*self.warnings[:MOST_WARNINGS], f"and {len(self.warnings) - MOST_WARNINGS} more"]
        try:
            self._write_files()
        except OSError:
            # Plugin code of a cell beside this one may have removed the folder meanwhile; a full disk fails again.
            reclaim(self.folder, written=True)
            self._write_files()
        if record.status in SETTLED and not folder.keep_newest(record.cell_id, self._earlier, record.attempt):
            self._give_up()
            return None
        if record.status in MEASURED or record.status == "invalid":
            shutil.rmtree(folder.checkpoints(self.cell.cell_id), ignore_errors=True)
        return record

    def _write_files(self) -> None:
        if self._record.error is not None and self._record.error.traceback:
            write_text(self.folder / TRACEBACK_FILE, self._record.error.traceback)
            self._record.error.traceback_file = TRACEBACK_FILE
        self._env.folder.write_record(self.folder, self._record)

    def _give_up(self) -> None:
        self._on_event(Warned("another run took this cell over while this one did not run; its result is discarded"))
        self.discard()

    def discard(self) -> None:
        """Remove the attempt: the cell was not run."""
        if not self._discarded:
            # Once only: the next attempt may have got the same number.
            self._discarded = True
            shutil.rmtree(self.folder, ignore_errors=True)

    def ask_about(self, runs: Sequence[CellRun]) -> list[dict[str, Any] | DfqError]:
        """Return the evaluator's answers about the students of runs of this cell's network and evaluation set.

        Raises:
            EvaluatorDiedError: it ended, or took longer than the limit for each of them.
        """
        attempts = [{"folder": str(run.folder), "scheme": run.cell.scheme.as_dict()} for run in runs]
        answer = self._ask("evaluate", len(runs), attempts=attempts)
        return list(answer["students"]) if "students" in answer else [answer for _ in runs]

    def _ask(self, operation: str, answers: int = 1, **arguments: Any) -> dict[str, Any]:
        request = self._request | arguments | {"op": operation}

        def report(done: int, images: int) -> None:
            self._on_event(Progress(Phase.EVALUATION, done, images, {}))

        return dict(valid(self._evaluator.ask(request, self._env.rules.evaluation_limit * answers, report)))

    @contextmanager
    def _failures_recorded(self) -> Iterator[None]:
        """Close the record with an error of the evaluator, instead of raising it."""
        try:
            yield
        except _AnswerError as error:
            self._record.close(error.status, error.error)
        except DfqError as error:
            status = "timeout" if isinstance(error, EvaluationTimeoutError) else "failed"
            description = Error(type=type(error).__name__, message=str(error), phase="evaluation", traceback="")
            self._record.close(status, description)


class _AnswerError(Exception):
    """The evaluator answered with an error."""

    def __init__(self, status: str, error: Error | None) -> None:
        self.status = status
        self.error = error


def _checked(answer: Mapping[str, Any], phase: str) -> dict[str, Any]:
    if "error" in answer:
        raise _AnswerError(answer.get("status", "failed"), error_of(answer["error"], phase))
    return dict(answer)


def _discard(runs: Iterable[CellRun]) -> None:
    for run in runs:
        run.discard()
