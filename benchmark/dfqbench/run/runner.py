"""The runner: takes a plan through workers and evaluator into records."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dfqbench.api.errors import DfqError
from dfqbench.grid.choice import REAL
from dfqbench.plugins import Plugins
from dfqbench.run.cell import Cell
from dfqbench.run.display import Display
from dfqbench.run.environment import environment_id
from dfqbench.run.estimate import History
from dfqbench.run.identity import derived_seed
from dfqbench.run.job import Job
from dfqbench.run.processes import EvaluatorProcess, Executor
from dfqbench.run.record import Header, add_accuracy, add_cost, blank, close, now
from dfqbench.run.saved import is_saved
from dfqbench.run.store import RunFolder

FAULTY = frozenset({"failed", "invalid"})
"""Statuses that are run again on request only: a fault seldom goes away by itself."""
FINISHED = FAULTY | {"ok"}
"""Statuses that are not run again by themselves."""


@dataclass(slots=True)
class Summary:
    """What a run did.

    Attributes:
        records: the newest record of every planned cell.
        reused: cells that were finished before.
        failed: cells that failed or are invalid now.
        notes: things to tell at the end.
    """

    records: list[dict[str, Any]] = field(default_factory=list)
    reused: int = 0
    failed: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class Runner:
    """Runs cells one after the other.

    Attributes:
        device: torch device.

    Args:
        folder: the run's folder.
        plugins: what is offered; told of finished records.
        executor: runs jobs.
        evaluator: measures accuracy.
        device: torch device.
        environment: description of the environment.
        guarded: real data that plugin code must not open.
        any_environment: whether cells finished elsewhere count as finished.
        retry: whether cells that failed before run again.
    """

    def __init__(
        self,
        folder: RunFolder,
        plugins: Plugins,
        executor: Executor,
        evaluator: EvaluatorProcess,
        *,
        device: str,
        environment: Mapping[str, Any],
        guarded: Sequence[Path] = (),
        any_environment: bool = False,
        retry: bool = False,
    ) -> None:
        self._folder = folder
        self._plugins = plugins
        self._executor = executor
        self._evaluator = evaluator
        self.device = device
        self._environment = environment_id(dict(environment))
        self._any_environment = any_environment
        self._retry = retry
        self._guarded = tuple(guarded)
        folder.write_environment(environment, self._environment)

    def finished(self, cell: Cell) -> dict[str, Any] | None:
        """The record that makes running a cell unnecessary, or None.

        Cells that could not run are looked at anew, since what was missing may be there now.
        """
        record = self._folder.latest(cell.cell_id)
        if record is None:
            return None
        same = record.get("environment") == self._environment
        if record["status"] not in FINISHED or not (same or self._any_environment):
            return None
        if record["status"] in FAULTY and (self._retry or cell.problem is not None):
            return None
        return record

    def run(self, cells: Iterable[Cell], display: Display, history: History) -> Summary:
        """Runs every cell that is not finished, in order.

        Args:
            cells: the plan's.
            display: is told what happens.
            history: for the time left; notes new records.
        """
        summary = Summary()
        cells = list(cells)
        finished = [self.finished(cell) for cell in cells]
        waiting = [cell for cell, record in zip(cells, finished, strict=True) if record is None]
        paid = self.paid_sources(waiting)
        for cell, before in zip(cells, finished, strict=True):
            if before is not None:
                summary.reused += 1
            record = before or self._attempt(cell, display)
            if before is None:
                waiting.remove(cell)
                history.note(record)
                paid |= self.paid_sources([cell])
                left = history.estimate(waiting, self.device, {}, paid)
                display.end(cell.label, record, left.seconds if left.known else None)
                for broken in self._plugins.record_finished(record):
                    summary.notes.append(f"plugin {broken.origin} failed in record_finished: {broken.message}")
            summary.records.append(record)
            if record["status"] in FAULTY:
                summary.failed.append(record)
        return summary

    def paid_sources(self, cells: Iterable[Cell]) -> set[str]:
        """Identities of the sources of some cells that are saved in the run's folder and serve here."""
        sources = {cell.source_id for cell in cells}
        return {source for source in sources if is_saved(self._folder.source(source), self._accepted)}

    @property
    def _accepted(self) -> str | None:
        """The environment that a saved source must come from; None: any."""
        return None if self._any_environment else self._environment

    def _attempt(self, cell: Cell, display: Display) -> dict[str, Any]:
        display.begin(cell.label)
        if cell.problem is not None:
            return self._without_running(cell)
        attempt, number = self._folder.new_attempt(cell.cell_id)
        record = blank(cell, Header(self._folder.name, number, self._environment, self.device, now()))
        try:
            record = self._measured(cell, record, attempt, display.event)
        except DfqError as error:
            record = close(record, "failed", _described(error))
        self._folder.write_record(attempt, record)
        return record

    def _without_running(self, cell: Cell) -> dict[str, Any]:
        """The record of a cell that cannot run; a new one only where the reason is new."""
        problem = cell.problem
        if problem is None:
            raise ValueError("the cell can run")
        error = {"type": problem.status, "message": problem.message, "phase": "plan"}
        before = self._folder.latest(cell.cell_id)
        said = None if before is None else (before["status"], (before.get("error") or {}).get("message"))
        if before is not None and said == (problem.status, problem.message):
            return before
        attempt, number = self._folder.new_attempt(cell.cell_id)
        record = blank(cell, Header(self._folder.name, number, self._environment, self.device, now()))
        record = close(record, problem.status, error)
        self._folder.write_record(attempt, record)
        return record

    def _measured(
        self,
        cell: Cell,
        record: dict[str, Any],
        attempt: Path,
        on_event: Callable[[Mapping[str, Any]], None],
    ) -> dict[str, Any]:
        request = self._request(cell, attempt)
        baseline = self._evaluator.ask(request | {"op": "baseline"})
        if "error" in baseline:
            return close(record, baseline["status"], baseline["error"] | {"phase": "setup"})
        if cell.method.name == REAL:
            prepared = self._prepare_real(cell, request)
            if "error" in prepared:
                return close(record, prepared["status"], prepared["error"] | {"phase": "synthesis"})
        # The full-precision network is measured once a run and belongs to no cell.
        begin = time.monotonic()
        outcome = self._executor.run(self.job(cell, attempt, begin), on_event)
        if outcome.status != "ok":
            add_cost(record, outcome, 0.0, time.monotonic() - begin)
            return close(record, outcome.status, outcome.error)
        on_event({"event": "phase", "name": "evaluation"})
        found = outcome.result.get("evaluation") or self._evaluator.ask(request | {"op": "evaluate"})
        if "error" in found:
            add_cost(record, outcome, 0.0, time.monotonic() - begin)
            return close(record, "failed", found["error"] | {"phase": "evaluation"})
        add_accuracy(record, baseline, found)
        add_cost(record, outcome, float(found["seconds"]), time.monotonic() - begin)
        record["peak_mib"]["evaluation"] = found["peak_mib"]
        if cell.model is not None and cell.model.random_seed is not None:
            record["flags"].append("random_weights")
        return _judged(record)

    def job(self, cell: Cell, attempt: Path, begin: float, probe_seconds: float = 0.0) -> Job:
        """The job of a cell.

        Args:
            cell: a cell that can run.
            attempt: its folder.
            begin: the monotonic clock when the attempt began.
            probe_seconds: for an estimate; 0: run to the end.
        """
        if cell.model is None:
            raise ValueError("the cell's model is missing")
        return Job(
            method=cell.method.name,
            method_params=cell.method.params,
            quantizer=cell.quantizer.name,
            quantizer_params=cell.quantizer.params,
            own_quantize=cell.choice.quantizer is None,
            model=cell.model.as_dict(),
            scheme=cell.scheme.as_dict(),
            budget=cell.budget.name,
            seed_key=cell.seed_key,
            precision=cell.precision,
            threads=cell.threads,
            device=self.device,
            attempt=str(attempt),
            source=str(self._folder.source(cell.source_id)),
            dataset=cell.dataset.as_dict(),
            limit=cell.limit,
            guarded=[str(path) for path in self._guarded],
            environment=self._environment,
            accepted_environment=self._accepted,
            plugin_files=[str(path) for path in self._plugins.files],
            started=begin,
            probe_seconds=probe_seconds,
        )

    def _request(self, cell: Cell, attempt: Path) -> dict[str, Any]:
        if cell.model is None:
            raise ValueError("the cell's model is missing")
        return {
            "model": cell.model.as_dict(),
            "dataset": cell.dataset.as_dict(),
            "limit": cell.limit,
            "attempt": str(attempt),
            "families": {name: offer.load for name, offer in self._plugins.models.items()},
        }

    def _prepare_real(self, cell: Cell, request: dict[str, Any]) -> dict[str, Any]:
        folder = self._folder.source(cell.source_id)
        if is_saved(folder, self._accepted):
            return {}
        seed = derived_seed(cell.seed_key, "real")
        count = cell.method.params["images"]
        facts = {"count": count, "seed": seed, "source": str(folder), "environment": self._environment}
        return self._evaluator.ask(request | facts | {"op": "real"})


def _judged(record: dict[str, Any]) -> dict[str, Any]:
    """Ends a measured record: invalid where real data was opened or a claimed operand is off its grid."""
    reasons = []
    if record["real_data_opened"]:
        reasons.append(f"plugin code opened real data: {record['real_data_opened'][0]}")
    if record["violations"]:
        reasons.append(f"claimed operands are off their grid: {', '.join(record['violations'][:3])}")
    if reasons:
        return close(record, "invalid", {"type": "Invalid", "message": "; ".join(reasons), "phase": "checks"})
    return close(record, "ok")


def _described(error: DfqError) -> dict[str, Any]:
    return {"type": type(error).__name__, "message": str(error), "phase": "evaluation", "traceback": ""}
