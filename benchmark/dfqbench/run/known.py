"""Students that a run's folder holds already: a cell that differs in the evaluation alone needs no training."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dfqbench.run.job import Outcome
from dfqbench.run.record import PHASES
from dfqbench.run.statuses import MEASURED

if TYPE_CHECKING:
    from dfqbench.run.store import RunFolder

STUDENT_FILES = ("student.safetensors", "student.json")
IMAGES_FILE = "images.safetensors"
TRAINING = "training"
EVALUATION_FLAGS = frozenset({"random_weights"})
"""Flags that the evaluation sets."""


@dataclass(frozen=True, slots=True)
class KnownStudent:
    """A student on disk with the record of its making.

    Attributes:
        record: of the attempt that made it.
        folder: that attempt's.
    """

    record: Mapping[str, Any]
    folder: Path

    @property
    def origin(self) -> dict[str, Any]:
        """Cell and attempt that made it, for a record."""
        return {"cell_id": self.record["cell_id"], "attempt": self.record["attempt"]}

    def copy_to(self, attempt: Path) -> None:
        """Copies the student, its images and those of its training beside another attempt."""
        for name in (*STUDENT_FILES, IMAGES_FILE):
            if (self.folder / name).is_file():
                shutil.copy2(self.folder / name, attempt / name)
        training = self.folder.parent / TRAINING
        if training.is_dir() and not (attempt.parent / TRAINING).exists():
            shutil.copytree(training, attempt.parent / TRAINING)

    def outcome(self) -> Outcome:
        """The worker's outcome, as the record tells it."""
        record = self.record
        seconds, reused = record["seconds"], None
        if record.get("reused_from"):
            unpaid = seconds["synthesis"] - seconds["paid_synthesis"]
            reused = {"id": record["reused_from"], "seconds": unpaid, "counts": {}}
            reused["peak_mib"] = record["peak_mib"].get("synthesis")
        kept = ("source_kind", "source_images", "counts", "real_data_opened", "wrote_outside", "resumed")
        result = {name: record.get(name) for name in kept if record.get(name) is not None}
        result["seconds"] = {name: seconds[name] for name in PHASES} | {"synthesis": seconds["paid_synthesis"]}
        result["peak_mib"] = {name: peak for name, peak in record["peak_mib"].items() if name != "evaluation"}
        result["flags"] = [flag for flag in record.get("flags") or [] if flag not in EVALUATION_FLAGS]
        return Outcome("ok", result=result | {"reused": reused})

    def wall(self) -> float:
        """Seconds that it took to make, without any evaluation."""
        seconds = self.record["seconds"]
        return float(seconds["wall"] - seconds["evaluation"])


def known_students(folder: RunFolder, environment: str | None) -> dict[str, KnownStudent]:
    """The newest finished student of each identity in a run's folder.

    Args:
        folder: of the run.
        environment: identity of the environment that they must come from, or None: any.
    """
    found: dict[str, KnownStudent] = {}
    for record, file in folder.records():
        if record is None or (environment is not None and record.get("environment") != environment):
            continue
        attempt = file.parent
        if _is_finished(record) and all((attempt / name).is_file() for name in STUDENT_FILES):
            found[str(record.get("student_id"))] = KnownStudent(record, attempt)
    return found


def _is_finished(record: Mapping[str, Any]) -> bool:
    """Whether a record's student came to the end of its training; whatever became of its evaluation."""
    seconds = record.get("seconds") or {}
    if "plugin_student" in (record.get("flags") or []) or not {"quantization", "paid_synthesis"} <= seconds.keys():
        return False
    return record["status"] in MEASURED or (record.get("error") or {}).get("phase") == "evaluation"
