"""The folder of a run: attempts, their records, and the students that need no training again."""

from __future__ import annotations

import contextlib
import errno
import gc
import hashlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dfqbench.api.errors import InputError, UsageError
from dfqbench.run.execute.job import Outcome
from dfqbench.run.store.files import (
    DIGEST,
    IMAGES_FILE,
    REAL_IMAGES_FILE,
    RECORD,
    STUDENT_FILES,
    TRAINING,
    json_text,
    read_regular,
    set_aside,
    write_text,
)
from dfqbench.run.store.status import MEASURED, SETTLED

if TYPE_CHECKING:
    from dfqbench.run.store.record import Record

MOST_BYTES = 64 * 2**20
"""A larger file is no record: that of a million images has a fifth of a megabyte."""
_MEASURED_KEYS = (
    *("fp_top1", "top1", "top5", "drop", "top1_se", "agreement", "correct", "oracle", "curve", "diagnostics"),
    *("seconds", "cpu_seconds", "counts", "peak_mib", "coverage", "levels_ok"),
)
"""Keys that an untrusted record is read without."""
MOST_DIGESTS = 2**20
"""Bytes of the largest file of digests that is read."""
DEFAULT_OUT = Path("results") / "runs"
RANDOM_WEIGHTS = "random_weights"
"""Flag of records of a network that was never trained; the evaluation sets it."""
_UNTRUSTED = "the record cannot be trusted"


@dataclass(frozen=True, slots=True)
class CachedStudent:
    """A trained student on disk."""

    record: Record  # of the attempt that trained it
    folder: Path  # that attempt's

    def copy_to(self, attempt: Path) -> None:
        """Copy the student, its images and those of its training to another attempt."""
        for name in (*STUDENT_FILES, IMAGES_FILE, REAL_IMAGES_FILE):
            if (self.folder / name).is_file():
                shutil.copy2(self.folder / name, attempt / name)
        training = self.folder.parent / TRAINING
        if training.is_dir() and not (attempt.parent / TRAINING).exists():
            shutil.copytree(training, attempt.parent / TRAINING, ignore=_no_files)

    @property
    def wall(self) -> float:
        """Seconds of its attempt without the evaluation."""
        return (self.record.seconds.wall or 0.0) - (self.record.seconds.evaluation or 0.0)

    def outcome(self) -> Outcome:
        """Return the outcome of the worker that made it, according to the record."""
        record, reused = self.record, None
        seconds, peaks = record.seconds, record.peak_mib
        paid = seconds.paid_synthesis or 0.0
        if record.reused_from:
            shared = (seconds.synthesis or 0.0) - paid
            # Of its CPU seconds the record holds the sum.
            cost = {"seconds": shared, "cpu_seconds": 0.0, "counts": {}, "peak_mib": peaks.synthesis}
            reused = {"id": record.reused_from} | cost
        result = {
            "seconds": {"setup": seconds.setup or 0.0, "synthesis": paid, "quantization": seconds.quantization},
            "cpu_seconds": record.cpu_seconds.model_dump(),
            "counts": record.counts.model_dump(exclude_unset=True),
            "peak_mib": peaks.model_dump(exclude_unset=True, exclude={"evaluation"}),
            "flags": [flag for flag in record.flags if flag != RANDOM_WEIGHTS],
            "reused": reused,
        }
        unchanged = ["source_kind", "source_images", "used_images", "real_data_opened", "wrote_outside", "resumed"]
        unchanged += ["foreign_calls", "protection"]
        return Outcome("ok", result=result | {name: getattr(record, name) for name in unchanged})


def _no_files(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if not Path(folder, name).is_file()]


class RunFolder:
    """The folder of one run.

    Attributes:
        path: `<out>/<run>`.
        shown: the path for messages, as the user named it.
    """

    def __init__(self, path: Path, shown: Path | None = None) -> None:
        self.path = path
        self.shown = shown or path

    @property
    def name(self) -> str:
        """The run's name."""
        return self.path.name

    def source(self, source_id: str) -> Path:
        """Folder of a shared source."""
        return self.path / "sources" / source_id

    def checkpoints(self, cell_id: str) -> Path:
        """Folder of a cell's checkpoints."""
        return self.path / "cells" / cell_id / "checkpoints"

    def attempt(self, cell_id: str, number: int) -> Path:
        """Folder of an attempt at a cell."""
        return self.path / "cells" / cell_id / f"attempt-{number}"

    def new_attempt(self, cell_id: str) -> tuple[Path, int]:
        """Make the folder of the next attempt at a cell.

        Returns:
            The folder and the attempt's number, from 1.
        """
        cell = self.path / "cells" / cell_id
        cell.mkdir(parents=True, exist_ok=True)
        number = 1 + max((_number(folder.name) for folder in cell.glob("attempt-*")), default=0)
        while True:
            folder = self.attempt(cell_id, number)
            try:
                folder.mkdir()
            except FileExistsError:
                number += 1
                continue
            return folder, number

    def begun_cells(self) -> set[str]:
        """Return the identities of the cells of which an attempt was begun."""
        return set(_names(f"{self.path}/cells"))

    def begun_sources(self) -> set[str]:
        """Return the identities of the shared sources that have a folder."""
        return set(_names(f"{self.path}/sources"))

    def newest_recorded(self, cell_id: str) -> int:
        """Return the number of a cell's newest attempt that has a record, or 0."""
        cell = f"{self.path}/cells/{cell_id}"
        recorded = (name for name in reversed(attempt_names(cell)) if Path(f"{cell}/{name}/{RECORD}").exists())
        return next(map(_number, recorded), 0)

    def keep_newest(self, cell_id: str, after: int, attempt: int) -> bool:
        """Set all settled records of attempts after a number aside but the newest; check that it is `attempt`'s.

        There are several where a run was suspended, and lost the cell, just before it wrote its record.
        """
        numbers = map(_number, attempt_names(f"{self.path}/cells/{cell_id}"))
        settled = [attempt]
        for number in (number for number in numbers if number > after and number != attempt):
            with contextlib.suppress(FileNotFoundError):
                record = _read(self.attempt(cell_id, number) / RECORD)
                settled += [number] if record is not None and record.status in SETTLED else []
        for number in set(settled) - {max(settled)}:
            set_aside(self.attempt(cell_id, number) / RECORD)
        return attempt == max(settled)

    def latest(self, cell_id: str) -> Record | None:
        """Return the newest readable record of a cell, or None."""
        records = [record for record, _ in _cell_records(f"{self.path}/cells/{cell_id}") if record is not None]
        return records[-1] if records else None

    def records(self) -> list[tuple[Record | None, Path]]:
        """Return every record of the run with its file; None where the file cannot be read."""
        cells = f"{self.path}/cells"
        with collection_paused():
            return [entry for name in sorted(_names(cells)) for entry in _cell_records(f"{cells}/{name}")]

    def cached_students(self, environment: str | None) -> dict[str, CachedStudent]:
        """Return the newest finished student of each identity, of one environment or any (None)."""
        return {
            record.student_id: CachedStudent(record, file.parent)
            for record, file in self.records()
            if record is not None
            and environment in {None, record.environment}
            and _is_trained(record)
            and all((file.parent / name).is_file() for name in STUDENT_FILES)
        }

    def write_record(self, attempt: Path, record: Record) -> None:
        """Write an attempt's record, and before it its digest, so that a change by others is noticed."""
        text = json_text(record.as_dict())
        contents = [text.encode()]
        if not (attempt / DIGEST).exists() and (attempt / RECORD).is_file():
            # An earlier record without a digest stays valid until it is replaced.
            contents.insert(0, (attempt / RECORD).read_bytes())
        with (attempt / DIGEST).open("a", encoding="ascii") as stream:
            stream.writelines(f"{hashlib.sha256(content).hexdigest()}  {RECORD}\n" for content in contents)
            stream.flush()
            os.fsync(stream.fileno())
        write_text(attempt / RECORD, text)


def _is_trained(record: Record) -> bool:
    """Check that the student's training came to its end, whatever became of its evaluation."""
    seconds = record.seconds
    if "plugin_student" in record.flags or seconds.quantization is None or seconds.paid_synthesis is None:
        return False
    return record.status in MEASURED or (record.error is not None and record.error.phase == "evaluation")


def _names(folder: str) -> list[str]:
    """Names in a folder, none where there is no folder; `glob` is slow for thousands of cells."""
    try:
        with os.scandir(folder) as entries:
            return [entry.name for entry in entries]
    except OSError:
        return []


def attempt_names(cell: str) -> list[str]:
    """Return the names of the folders of the attempts at a cell, given its folder, the oldest first."""
    return sorted((name for name in _names(cell) if name.startswith("attempt-")), key=_number)


def _cell_records(cell: str) -> Iterator[tuple[Record | None, Path]]:
    for name in attempt_names(cell):
        file = Path(f"{cell}/{name}/{RECORD}")
        with contextlib.suppress(FileNotFoundError):
            yield _read(file), file


def _number(attempt: str) -> int:
    """Number of an attempt by the name of its folder."""
    text = attempt.partition("-")[2]
    return int(text) if text.isdecimal() else 0


def _read(file: Path) -> Record | None:
    try:
        return read_record(file)
    except FileNotFoundError:
        raise
    except (OSError, ValueError, ArithmeticError, RecursionError):
        return None


def read_record(file: Path) -> Record:
    """Read a record; one that contradicts itself or its digest is `invalid`, and read without its measurements.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no record, or one of a newer schema (`NewerSchemaError`).
        RecursionError: it is nested too deep.
    """
    # Pydantic is not loaded before there is something to read.
    from dfqbench.run.store.consistency import contradictions
    from dfqbench.run.store.record import Record
    from dfqbench.run.store.record_parts import Error

    content = read_regular(file, MOST_BYTES)
    record = Record.from_json(content)
    problems = contradictions(record)
    if (cell := file.parent.parent.name) != record.cell_id:
        problems.insert(0, f"it is of cell {record.cell_id} and lies in the folder of cell {cell}")
    if not _is_as_written(file, content):
        problems.insert(0, f"{RECORD} is not what dfqbench wrote ({DIGEST} beside it holds another digest)")
    if problems:
        for key in _MEASURED_KEYS:
            setattr(record, key, Record.model_fields[key].get_default(call_default_factory=True))
        record.status = "invalid"
        record.error = Error(type="Invalid", message=f"{_UNTRUSTED}: {'; '.join(problems)}")
    return record


def is_untrusted(record: Record) -> bool:
    """Check whether `read_record` has found that a record contradicts itself or its digest."""
    return record.status == "invalid" and record.error is not None and record.error.message.startswith(_UNTRUSTED)


def _is_as_written(file: Path, content: bytes) -> bool:
    """Check a record's content against the digests beside it; without any, nothing speaks against it."""
    try:
        digests = read_regular(f"{os.fspath(file)[: -len(RECORD)]}{DIGEST}", MOST_DIGESTS)
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno in {errno.EINVAL, errno.EFBIG, errno.ELOOP}:
            return False
        raise
    return hashlib.sha256(content).hexdigest().encode() in digests


@contextlib.contextmanager
def collection_paused() -> Iterator[None]:
    """Pause the cyclic garbage collector, which would walk through thousands of new records over and over."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def run_folders(path: Path) -> list[RunFolder]:
    """Return the runs at a path: itself if it is a run's folder, else those directly below.

    Raises:
        InputError: there is none.
    """
    if (path / "cells").is_dir():
        return [RunFolder(path)]
    runs = [RunFolder(folder.parent) for folder in sorted(path.glob("*/cells")) if folder.is_dir()]
    if not runs:
        hint = "name the results folder with --out, or make a run: `dfqbench run --grid smoke`"
        raise InputError(f"{path} holds no run", hint)
    return runs


def read_records(path: Path) -> tuple[list[Record], list[str]]:
    """Read every record at a path.

    Args:
        path: a run's folder or a folder of runs.

    Returns:
        The records, and a line for each file that cannot be read.

    Raises:
        InputError: there is no run.
    """
    entries = [entry for run in run_folders(path) for entry in run.records()]
    records = [record for record, _ in entries if record is not None]
    return records, [unreadable(file) for record, file in entries if record is None]


def unreadable(file: Path) -> str:
    """Return the warning about a file that is not a readable record."""
    from dfqbench.run.store.record import NewerSchemaError

    try:
        read_record(file)
    except NewerSchemaError as error:
        return f"{file} is not a readable record of this version: {error}; it is left out (upgrade dfqbench)"
    except OSError as error:
        return f"{file} is not a readable record: {error.strerror or error}; it is left out"
    except (ValueError, ArithmeticError, RecursionError):
        pass
    return f"{file} is not a readable record; it is left out (delete its folder to run it again)"


def find_cell(path: Path, prefix: str) -> Path:
    """Return the newest attempt's folder of the cell whose identity begins with `prefix`.

    Raises:
        UsageError: no cell or several cells begin so.
        InputError: there is no run.
    """
    cells = [
        cell for run in run_folders(path) for cell in (run.path / "cells").iterdir() if cell.name.startswith(prefix)
    ]
    names = sorted({cell.name for cell in cells})
    if not names:
        raise UsageError(f"no cell begins with '{prefix}' in {path}", "`dfqbench show RUN` lists the cells of a run")
    if len(names) > 1:
        raise UsageError(f"several cells begin with '{prefix}': {', '.join(names[:5])}", "write more digits")
    attempts = [attempt for cell in cells for attempt in cell.glob("attempt-*")]
    if not attempts:
        raise UsageError(f"cell {names[0]} has no attempt yet", "run its grid again")
    return max(attempts, key=lambda attempt: (attempt.stat().st_mtime, _number(attempt.name)))
