"""The environment of a run: folder, plugins, rules and device, and the jobs and first records of its cells."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dfqbench.models.spec import ModelSpec
from dfqbench.plugins import Plugins
from dfqbench.run.execute.job import CHECKPOINT_EVERY, EvaluatorClient, Job, JobMember
from dfqbench.run.plan.cell import Cell
from dfqbench.run.store.environment import describe_environment, environment_id, knows_torch, write_environment
from dfqbench.run.store.files import shortened
from dfqbench.run.store.lease import LEASE_SECONDS
from dfqbench.run.store.record import SCHEMA, Record, now
from dfqbench.run.store.record_parts import Dataset, Error, Model, Preprocessing, SchemeFacts, Versions
from dfqbench.run.store.run_folder import CachedStudent, RunFolder
from dfqbench.run.store.source_cache import is_saved
from dfqbench.run.store.status import FAULTY, MEASURED, SETTLED


@dataclass(frozen=True, slots=True)
class Rules:
    """Which cells count as finished, and the limits of a run."""

    any_environment: bool = False  # whether cells finished in other environments count as finished
    retry: frozenset[str] = frozenset()  # statuses that are run again
    fresh: bool = False  # whether everything is run again, from the start
    time_limit: float = 0.0  # seconds for the worker of an attempt; 0: no limit
    evaluation_limit: float = 0.0  # seconds for each answer of the evaluator; 0: no limit
    checkpoint_every: float = CHECKPOINT_EVERY  # seconds between checkpoints
    memory_mib: int = 0  # most private memory of a worker; 0: no limit
    max_failures: int = 0  # failures, of all runs on the folder, after which the run ends; 0: never
    failures_since: str = ""  # count also those finished since then (as in records); empty: since the run's start
    last_begin: float = math.inf  # Unix time after which no cell is begun
    oracle: int = 0  # states of each student to evaluate besides its last; a cell finished with fewer runs again
    lease_seconds: float = LEASE_SECONDS  # without a heartbeat until another run takes a cell over
    separate: bool = False  # whether each cell has a worker to itself, even where one source could serve several


class RunEnvironment:
    """Everything that the cells of a run share.

    Attributes:
        environment: identity of the software and hardware.

    Args:
        guarded: real data that plugin code must not open.
        description: of software and hardware; None: this machine's.
    """

    def __init__(
        self,
        folder: RunFolder,
        plugins: Plugins,
        device: str,
        rules: Rules | None = None,
        *,
        guarded: Sequence[Path] = (),
        description: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder = folder
        self.plugins = plugins
        self.device = device
        self.rules = rules or Rules()
        self._guarded = guarded
        self._description = description or describe_environment(device)
        self.environment = environment_id(self._description)
        self._described_torch = False

    def finished(self, cell: Cell) -> Record | None:
        """Return the record that makes running a cell unnecessary, or None.

        Cells that could not run are tried again, since a missing file may be there now.
        """
        if self.rules.fresh:
            return None
        record = self.folder.latest(cell.cell_id)
        if record is None or not self.accepts(record):
            return None
        if record.status in MEASURED and record.oracle_asked < self.rules.oracle:
            return None
        if record.status in FAULTY and (record.status in self.rules.retry or cell.problem is not None):
            return None
        return record

    def finished_of(self, cells: Sequence[Cell]) -> list[Record | None]:
        """Return `finished` of each cell; those without a folder need no look each."""
        begun = self.folder.begun_cells()
        return [self.finished(cell) if cell.cell_id in begun else None for cell in cells]

    def accepts(self, record: Record) -> bool:
        """Check that a record is settled, in an environment that counts."""
        return record.status in SETTLED and self.accepted in {None, record.environment}

    @property
    def accepted(self) -> str | None:
        """The environment that records, sources and students must come from; None: any."""
        return None if self.rules.any_environment else self.environment

    def saved_sources(self, cells: Iterable[Cell]) -> set[str]:
        """Return the identities of those sources of some cells that are saved and can be used."""
        sources = {cell.source_id for cell in cells}
        if len(sources) > 1:
            # One look at the folder instead of one for each of thousands of cells.
            sources &= self.folder.begun_sources()
        return {source for source in sources if is_saved(self.folder.source(source), self.accepted)}

    def cached_students(self) -> dict[str, CachedStudent]:
        """Return the students that need no training again, by identity.

        None in a fresh run, and none for the oracle, which needs states during the training.
        """
        return {} if self.rules.fresh or self.rules.oracle else self.folder.cached_students(self.accepted)

    def may_share_worker(self, cell: Cell) -> bool:
        """Check that a cell may share its worker with others of its source.

        Not with a time limit, which is each cell's own, and not where the images are saved and only a training of each
        cell's own is left.
        """
        if self.rules.separate or self.rules.time_limit or cell.problem is not None:
            return False
        return not (self.saved_sources([cell]) and self.plugins.quantizer_class(cell.quantizer.name).trains)

    def describe(self) -> None:
        """Write the description of software and hardware."""
        write_environment(self.folder.path, self._description, self.environment)

    def describe_torch(self, evaluator: EvaluatorClient) -> None:
        """Add what only torch knows to the description, once."""
        if self._described_torch:
            return
        self._described_torch = True
        if not knows_torch(self.folder.path, self._description, self.environment):
            answer = evaluator.ask({"op": "environment"})
            if "error" not in answer:
                write_environment(self.folder.path, {**self._description, "torch": answer["torch"]}, self.environment)

    def job(self, attempts: Sequence[tuple[Cell, Path]], begin: float, probe_seconds: float = 0.0) -> Job:
        """Return the job of runnable cells that differ in the scheme only, each with its attempt's folder.

        `begin` is the monotonic clock of now; with `probe_seconds`, the job times its first steps for an estimate.
        """
        (cell, attempt), *members = attempts
        return Job(
            method=cell.method.name,
            method_params=cell.method.params,
            quantizer=cell.quantizer.name,
            quantizer_params=cell.quantizer.params,
            own_quantize=cell.choice.quantizer is None,
            model=_model(cell).as_dict(),
            scheme=cell.scheme.as_dict(),
            budget=cell.budget.name,
            seed_key=cell.seed_key,
            precision=cell.precision,
            threads=cell.threads,
            device=self.device,
            attempt=str(attempt),
            source=str(self.folder.source(cell.source_id)),
            dataset=cell.dataset.as_dict(),
            limit=cell.limit,
            guarded=[str(path) for path in self._guarded],
            environment=self.environment,
            accepted_environment=self.accepted,
            plugin_files=[str(path) for path in self.plugins.files],
            started=begin,
            run=str(self.folder.path),
            checkpoints="" if probe_seconds else str(self.folder.checkpoints(cell.cell_id)),
            checkpoint_every=self.rules.checkpoint_every,
            memory_mib=self.rules.memory_mib,
            time_limit=0.0 if probe_seconds else self.rules.time_limit,
            snapshots=0 if probe_seconds else self.rules.oracle,
            probe_seconds=probe_seconds,
            lease_seconds=self.rules.lease_seconds,
            members=[
                JobMember(member.scheme.as_dict(), str(folder), str(self.folder.checkpoints(member.cell_id)))
                for member, folder in members
            ],
        )

    def request(self, cell: Cell, attempt: Path) -> dict[str, Any]:
        """Return the part that all requests to the evaluator about a cell have in common."""
        return {
            "model": _model(cell).as_dict(),
            "dataset": cell.dataset.as_dict(),
            "limit": cell.limit,
            "attempt": str(attempt),
            "families": self.plugins.model_families,
            "precision": cell.precision,
        }

    def record_problem(self, cell: Cell) -> Record:
        """Return the record of a cell that cannot run; a new one only where the reason is new."""
        if cell.problem is None:
            raise ValueError("the cell can run")
        status, message = cell.problem.status, cell.problem.message
        error = Error(type=status, message=shortened(message), phase="plan")
        latest = self.folder.latest(cell.cell_id)
        if latest is not None and (latest.status, latest.error) == (status, error):
            return latest
        folder, number = self.folder.new_attempt(cell.cell_id)
        record = self.new_record(cell, number)
        record.close(status, error)
        self.folder.write_record(folder, record)
        return record

    def new_record(self, cell: Cell, attempt: int) -> Record:
        """Return a record with everything that is known before the attempt, and nothing measured."""
        model, mixed = cell.model, cell.scheme.mixed
        parts = {"method": cell.method, "quantizer": cell.quantizer}
        changed_params = [f"{part}.{name}" for part, value in parts.items() for name in value.changed]
        changed_params += [] if mixed is None else [f"mixed.{name}" for name in mixed.changed]
        return Record(
            schema=SCHEMA,
            run=self.folder.name,
            source_id=cell.source_id,
            student_id=cell.student_id,
            cell_id=cell.cell_id,
            attempt=attempt,
            status="failed",
            flags=[],
            started_at=now(),
            finished_at=None,
            method=cell.method.name,
            label=cell.choice.label,
            title=cell.method.title,
            paper=cell.method.paper,
            link=cell.method.link,
            control=cell.method.control,
            quantizer=cell.quantizer.name,
            cross=cell.choice.quantizer is not None,
            own_quantize=cell.own_quantize,
            recipe=cell.quantizer.recipe,
            recipe_changes=list(cell.quantizer.recipe_changes),
            range=cell.range_rule,
            params={part: value.params for part, value in parts.items()},
            changed_params=changed_params,
            versions=Versions(method=cell.method.version, quantizer=cell.quantizer.version),
            fidelity=cell.method.fidelity,
            target=cell.dataset.name,
            model=Model(
                name=cell.model_name,
                ref=None if model is None else model.ref,
                weights_sha256=cell.model_key.get("weights_sha256"),
                params=None,
            ),
            scheme=SchemeFacts(
                label=cell.scheme.label,
                w_bits=cell.scheme.w_bits,
                a_bits=cell.scheme.a_bits,
                protocol=cell.scheme.protocol.name,
                details=cell.scheme.as_dict()["protocol"],
                **({} if mixed is None else {"mixed": cell.scheme.as_dict()["mixed"]}),
            ),
            budget=cell.budget.name,
            precision=cell.precision,
            seed=cell.seed,
            threads=cell.threads,
            device=self.device,
            dataset=Dataset(
                name=cell.dataset.name, subset_of=cell.dataset.subset_of, n=None, subset=None, sha256=cell.dataset_hash
            ),
            preprocessing=Preprocessing.model_validate(cell.preprocessing),
            selection="last",
            together_with=[],
            student_from=None,
            oracle=None,
            oracle_asked=self.rules.oracle,
            curve=None,
            environment=self.environment,
            revision=self._description.get("revision"),
            error=None,
        )


def _model(cell: Cell) -> ModelSpec:
    if cell.model is None:
        raise ValueError("the cell's model is missing")
    return cell.model
