"""Diagnosing a run: every finished cell, into its record."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from dfqbench.api.errors import DfqError
from dfqbench.diagnose.cell import VERSION, diagnose
from dfqbench.diagnose.kept import IMAGES_FILE, kept_images, kept_model, kept_training
from dfqbench.diagnose.speed import speeds
from dfqbench.models.build import build_teacher
from dfqbench.report.record_access import finished, latest
from dfqbench.run.plan.identity import canonical
from dfqbench.run.store.record import Diagnostics, Record
from dfqbench.run.store.run_folder import RunFolder


@dataclass(slots=True)
class Diagnosed:
    """What was done.

    Attributes:
        records: the run's records, with what was found.
        done: cells that were diagnosed now.
        before: cells that had been before.
        problems: a line for each cell that could not be.
    """

    records: list[Record] = field(default_factory=list)
    done: int = 0
    before: int = 0
    problems: list[str] = field(default_factory=list)


class Diagnosis:
    """Diagnoses runs.

    Args:
        device: where networks run.
        families: model families that plugins offer.
        trust: whether code that a run's folder names outside model libraries may be run.
        again: whether cells that have been diagnosed are diagnosed again.
        say: is told of each cell before it is looked at.
    """

    def __init__(
        self,
        device: str = "cpu",
        families: Mapping[str, str] | None = None,
        *,
        trust: bool = False,
        again: bool = False,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._device = device
        self._families = families or {}
        self._trust = trust
        self._again = again
        self._say = say
        self._teachers: dict[str, nn.Module] = {}

    def run(self, folder: RunFolder) -> Diagnosed:
        """Diagnoses the newest attempt at every finished cell of a run and writes what it finds into the records."""
        pairs = [(record, file) for record, file in folder.records() if record is not None]
        found = Diagnosed([record for record, _ in pairs])
        newest = {id(record) for record in latest(found.records)}
        speed = speeds([record for record in found.records if id(record) in newest])
        for record, file in pairs:
            if id(record) in newest and finished(record):
                self._cell(folder, record, file, speed.get(id(record)), found)
        return found

    def _cell(self, folder: RunFolder, record: Record, file: Path, speed: float | None, found: Diagnosed) -> None:
        known = record.diagnostics
        fresh = known.version == VERSION and not self._again
        label = f"{record.label} {record.cell_id}"
        try:
            measured = known.model_copy() if fresh else self._measured(file.parent, label)
        except (DfqError, RuntimeError) as error:
            found.problems.append(f"{label}: {error}")
            return
        measured.speed = None if speed is None else float(f"{speed:.4g}")
        found.before += fresh
        found.done += not fresh
        if measured != known:
            record.diagnostics = measured
            folder.write_record(file.parent, record)

    def _measured(self, attempt: Path, label: str) -> Diagnostics:
        self._say(label)
        kept = kept_images(attempt / IMAGES_FILE)
        model = kept_model(attempt, trust=self._trust)
        key = canonical(model.as_dict())
        if key not in self._teachers:
            # One network at a time: cells come in no order, but large ones should not pile up.
            self._teachers.clear()
            self._teachers[key] = build_teacher(model, torch.device(self._device), self._families)
        return diagnose(self._teachers[key], kept, kept_training(attempt))
