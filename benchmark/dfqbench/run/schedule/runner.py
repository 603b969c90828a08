"""The runner: what a run needs to know to take a cell from the plan to its record."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dfqbench.plugins import Plugins
from dfqbench.run.execute.executor import EvaluatorClient
from dfqbench.run.execute.job import CHECKPOINT_EVERY, Job, Partner
from dfqbench.run.plan.cell import Cell
from dfqbench.run.store.environment import environment_id
from dfqbench.run.store.record import Record
from dfqbench.run.store.record.build import Header, now
from dfqbench.run.store.run_folder import RunFolder
from dfqbench.run.store.source_cache import is_saved
from dfqbench.run.store.status import FAULTY, MEASURED, SETTLED
from dfqbench.run.store.student_cache import KnownStudent, known_students


@dataclass(frozen=True, slots=True)
class Rules:
    """What counts as finished, and when to give up.

    Attributes:
        any_environment: whether cells finished elsewhere count as finished.
        retry: statuses that are run again.
        fresh: whether everything is run again, from the start.
        time_limit: seconds for the worker of an attempt; 0: no limit.
        evaluation_limit: seconds for each answer of the evaluator; 0: no limit.
        checkpoint_every: seconds between checkpoints.
        memory_mib: most private memory of a worker; 0: no limit.
        max_failures: failures after which the run ends; 0: never.
        oracle: states of each student to evaluate besides its last; a cell finished with fewer runs again.
        separate: whether each cell has a worker to itself, even where one source could serve several.
    """

    any_environment: bool = False
    retry: frozenset[str] = frozenset()
    fresh: bool = False
    time_limit: float = 0.0
    evaluation_limit: float = 0.0
    checkpoint_every: float = CHECKPOINT_EVERY
    memory_mib: int = 0
    max_failures: int = 0
    oracle: int = 0
    separate: bool = False


@dataclass(frozen=True, slots=True)
class Site:
    """Where a run takes place.

    Attributes:
        device: torch device.
        environment: description of the environment.
        guarded: real data that plugin code must not open.
    """

    device: str
    environment: Mapping[str, Any]
    guarded: tuple[Path, ...] = field(default=())


class Runner:
    """One run's folder, plugins, rules and site.

    Attributes:
        folder: the run's folder.
        plugins: what is offered.
        rules: what counts as finished.
        device: torch device.
        environment: identity of the environment.

    Args:
        site: where it takes place.
    """

    def __init__(self, folder: RunFolder, plugins: Plugins, site: Site, rules: Rules | None = None) -> None:
        self.folder = folder
        self.plugins = plugins
        self.rules = rules or Rules()
        self.device = site.device
        self.environment = environment_id(dict(site.environment))
        self._site = site
        self._described = False

    def finished(self, cell: Cell) -> Record | None:
        """The record that makes running a cell unnecessary, or None.

        Cells that could not run are looked at anew, since what was missing may be there now.
        """
        if self.rules.fresh:
            return None
        record = self.folder.latest(cell.cell_id)
        if record is None or not self.serves(record):
            return None
        if record.status in MEASURED and record.oracle_asked < self.rules.oracle:
            return None
        if record.status in FAULTY and (record.status in self.rules.retry or cell.problem is not None):
            return None
        return record

    def serves(self, record: Record) -> bool:
        """Whether a record has come to an end in an environment that counts."""
        same = record.environment == self.environment
        return record.status in SETTLED and (same or self.rules.any_environment)

    def paid_sources(self, cells: Iterable[Cell]) -> set[str]:
        """Identities of the sources of some cells that are saved in the run's folder and serve here."""
        sources = {cell.source_id for cell in cells}
        return {source for source in sources if is_saved(self.folder.source(source), self.accepted)}

    @property
    def accepted(self) -> str | None:
        """The environment that a saved source must come from; None: any."""
        return None if self.rules.any_environment else self.environment

    def header(self, number: int) -> Header:
        """What the record of attempt `number` says first."""
        revision = self._site.environment.get("revision")
        return Header(self.folder.name, number, self.environment, self.device, now(), revision, self.rules.oracle)

    def describe(self) -> None:
        """Writes the description of the environment, once."""
        self.folder.write_environment(self._site.environment, self.environment)

    def describe_torch(self, evaluator: EvaluatorClient) -> None:
        """Adds what only torch knows to the description of the environment, once."""
        if self._described:
            return
        self._described = True
        if not self.folder.knows_torch(self.environment):
            found = evaluator.ask({"op": "environment"})
            if "error" not in found:
                self.folder.write_environment({**self._site.environment, "torch": found["torch"]}, self.environment)

    def known_students(self) -> dict[str, KnownStudent]:
        """Students of the run's folder that need no training again, by identity; none in a fresh run.

        For the oracle a training's states are needed, too, which are gone.
        """
        return {} if self.rules.fresh or self.rules.oracle else known_students(self.folder, self.accepted)

    def may_go_together(self, cell: Cell) -> bool:
        """Whether a cell may share its worker with others of its source.

        Not where it has a time limit, which is each cell's own, and not where its images are there already and what
        is left is a training of its own.
        """
        if self.rules.separate or self.rules.time_limit or cell.problem is not None:
            return False
        return not (self.paid_sources([cell]) and self.plugins.quantizer_class(cell.quantizer.name).trains)

    def job(self, attempts: Sequence[tuple[Cell, Path]], begin: float, probe_seconds: float = 0.0) -> Job:
        """The job of a cell, or of several that differ in the scheme only.

        Args:
            attempts: a cell that can run with its attempt's folder, and its partners with theirs.
            begin: the monotonic clock when the attempt began.
            probe_seconds: for an estimate; 0: run to the end.
        """
        (cell, attempt), *partners = attempts
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
            source=str(self.folder.source(cell.source_id)),
            dataset=cell.dataset.as_dict(),
            limit=cell.limit,
            guarded=[str(path) for path in self._site.guarded],
            environment=self.environment,
            accepted_environment=self.accepted,
            plugin_files=[str(path) for path in self.plugins.files],
            started=begin,
            run=str(self.folder.path),
            checkpoints="" if probe_seconds else self._checkpoints(cell),
            checkpoint_every=self.rules.checkpoint_every,
            memory_mib=self.rules.memory_mib,
            time_limit=0.0 if probe_seconds else self.rules.time_limit,
            snapshots=0 if probe_seconds else self.rules.oracle,
            probe_seconds=probe_seconds,
            partners=[
                Partner(partner.scheme.as_dict(), str(folder), self._checkpoints(partner))
                for partner, folder in partners
            ],
        )

    def _checkpoints(self, cell: Cell) -> str:
        return str(self.folder.checkpoints(cell.cell_id))

    def request(self, cell: Cell, attempt: Path) -> dict[str, Any]:
        """What every request to the evaluator says about a cell."""
        if cell.model is None:
            raise ValueError("the cell's model is missing")
        return {
            "model": cell.model.as_dict(),
            "dataset": cell.dataset.as_dict(),
            "limit": cell.limit,
            "attempt": str(attempt),
            "families": {name: offer.load for name, offer in self.plugins.models.items()},
            "precision": cell.precision,
        }
