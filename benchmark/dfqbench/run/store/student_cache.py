"""Students that a run's folder holds already: a cell that differs in the evaluation alone needs no training."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dfqbench.run.execute.events import Phase
from dfqbench.run.execute.job import Outcome
from dfqbench.run.store.record import Origin, Record
from dfqbench.run.store.status import MEASURED

if TYPE_CHECKING:
    from dfqbench.run.store.run_folder import RunFolder

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

    record: Record
    folder: Path

    @property
    def origin(self) -> Origin:
        """Cell and attempt that made it, for a record."""
        return Origin(cell_id=self.record.cell_id, attempt=self.record.attempt)

    def copy_to(self, attempt: Path) -> None:
        """Copies the student, its images and those of its training beside another attempt."""
        for name in (*STUDENT_FILES, IMAGES_FILE):
            if (self.folder / name).is_file():
                shutil.copy2(self.folder / name, attempt / name)
        training = self.folder.parent / TRAINING
        if training.is_dir() and not (attempt.parent / TRAINING).exists():
            shutil.copytree(training, attempt.parent / TRAINING)

    def outcome(self) -> Outcome:
        """Return the worker's outcome, as the record tells it."""
        record = self.record
        seconds, peaks, reused = record.seconds, record.peak_mib, None
        paid, synthesis = seconds.paid_synthesis or 0.0, seconds.synthesis or 0.0
        if record.reused_from:
            reused = {"id": record.reused_from, "seconds": synthesis - paid, "counts": {}, "peak_mib": peaks.synthesis}
        return Outcome(
            "ok",
            result={
                "seconds": {"setup": seconds.setup or 0.0, "synthesis": paid, "quantization": seconds.quantization},
                "source_kind": record.source_kind,
                "source_images": record.source_images,
                "counts": record.counts.model_dump(exclude_unset=True),
                "peak_mib": peaks.model_dump(exclude_unset=True, exclude={"evaluation"}),
                "real_data_opened": record.real_data_opened,
                "wrote_outside": record.wrote_outside,
                "resumed": record.resumed,
                "flags": [flag for flag in record.flags if flag not in EVALUATION_FLAGS],
                "reused": reused,
            },
        )

    def wall(self) -> float:
        """Seconds that it took to make, without any evaluation."""
        return (self.record.seconds.wall or 0.0) - (self.record.seconds.evaluation or 0.0)


def known_students(folder: RunFolder, environment: str | None) -> dict[str, KnownStudent]:
    """The newest finished student of each identity in a run's folder.

    Args:
        folder: of the run.
        environment: identity of the environment that they must come from, or None: any.
    """
    found: dict[str, KnownStudent] = {}
    for record, file in folder.records():
        if record is None or (environment is not None and record.environment != environment):
            continue
        attempt = file.parent
        if _is_finished(record) and all((attempt / name).is_file() for name in STUDENT_FILES):
            found[record.student_id] = KnownStudent(record, attempt)
    return found


def _is_finished(record: Record) -> bool:
    """Whether a record's student came to the end of its training; whatever became of its evaluation."""
    seconds = record.seconds
    if "plugin_student" in record.flags or seconds.quantization is None or seconds.paid_synthesis is None:
        return False
    return record.status in MEASURED or (record.error is not None and record.error.phase == Phase.EVALUATION)
