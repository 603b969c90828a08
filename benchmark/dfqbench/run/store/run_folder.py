"""The store: folders of attempts, records written whole or not at all, and reading them back."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dfqbench.api.errors import InputError, UsageError

if TYPE_CHECKING:
    from dfqbench.run.store.record import Record

RECORD = "record.json"
MOST_BYTES = 64 * 2**20
"""A larger file is no record: that of a million images has a fifth of a megabyte."""
DEFAULT_OUT = Path("results") / "runs"


def write_json(path: Path, data: Any) -> None:
    """Writes JSON under a temporary name, flushes it to disk, and renames it: whole or not at all."""
    write_text(path, json.dumps(data, indent=1, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a text file the same way; nothing but a rename ever changes it, so that it is whole on any file system."""
    # A random name: processes of several machines may write the same file of a shared folder.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with temporary.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Flushes a folder's list of names to disk, where the file system can: a rename then survives a power cut."""
    try:
        number = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(number)
    except OSError:
        # Some network file systems refuse; their rename is all that there is.
        pass
    finally:
        os.close(number)


class RunFolder:
    """The folder of one run.

    Attributes:
        path: `<out>/<run>`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

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

    def new_attempt(self, cell_id: str) -> tuple[Path, int]:
        """Makes the folder of the next attempt at a cell.

        Returns:
            The folder and the attempt's number, from 1.
        """
        cell = self.path / "cells" / cell_id
        cell.mkdir(parents=True, exist_ok=True)
        number = 1 + max((_number(folder.name) for folder in cell.glob("attempt-*")), default=0)
        while True:
            folder = cell / f"attempt-{number}"
            try:
                folder.mkdir()
            except FileExistsError:
                number += 1
                continue
            return folder, number

    def latest(self, cell_id: str) -> Record | None:
        """The newest readable record of a cell, or None."""
        found = [record for record, _ in _cell_records(f"{self.path}/cells/{cell_id}") if record is not None]
        return found[-1] if found else None

    def records(self) -> list[tuple[Record | None, Path]]:
        """Return every record of the run with its file; None where the file cannot be read."""
        cells = f"{self.path}/cells"
        with collection_paused():
            return [entry for name in sorted(_names(cells)) for entry in _cell_records(f"{cells}/{name}")]

    def write_record(self, attempt: Path, record: Record) -> None:
        """Writes an attempt's record, whole or not at all."""
        write_json(attempt / RECORD, record.as_dict())

    def write_environment(self, environment: Mapping[str, Any], name: str) -> None:
        """Writes the description of an environment; one that says more is not replaced by one that says less."""
        path = self._environment(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        if "torch" in environment or not path.exists():
            write_json(path, dict(environment))

    def knows_torch(self, name: str) -> bool:
        """Whether the description of an environment holds what only torch knows."""
        try:
            found = json.loads(self._environment(name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return isinstance(found, dict) and "torch" in found

    def _environment(self, name: str) -> Path:
        return self.path / "environments" / f"{name}.json"


def _names(folder: str) -> list[str]:
    """Names in a folder, none where there is no folder; patterns are slow for the thousands of cells of a table."""
    try:
        with os.scandir(folder) as entries:
            return [entry.name for entry in entries]
    except OSError:
        return []


def _cell_records(cell: str) -> Iterator[tuple[Record | None, Path]]:
    for name in sorted((name for name in _names(cell) if name.startswith("attempt-")), key=_number):
        file = Path(f"{cell}/{name}/{RECORD}")
        try:
            yield _read(file), file
        except FileNotFoundError:
            continue


def _number(attempt: str) -> int:
    """Number of an attempt by the name of its folder."""
    text = attempt.partition("-")[2]
    return int(text) if text.isdigit() else 0


def _read(file: Path) -> Record | None:
    # Pydantic is not loaded before there is something to read.
    from dfqbench.run.store.record import Record

    try:
        with file.open("rb", buffering=0) as stream:
            if os.fstat(stream.fileno()).st_size > MOST_BYTES:
                return None
            return Record.from_json(stream.readall())
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RecursionError):
        return None


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
    """The runs at a path: itself if it is a run's folder, else those directly below.

    Raises:
        InputError: there is none.
    """
    if (path / "cells").is_dir():
        return [RunFolder(path)]
    found = [RunFolder(folder.parent) for folder in sorted(path.glob("*/cells")) if folder.is_dir()]
    if not found:
        raise InputError(f"{path} holds no run", "name the results folder with --out, or make a run: `dfqbench run`")
    return found


def read_records(path: Path) -> tuple[list[Record], list[str]]:
    """Reads every record at a path.

    Args:
        path: a run's folder or a folder of runs.

    Returns:
        The records, and a line for each file that cannot be read.

    Raises:
        InputError: there is no run.
    """
    records, warnings = [], []
    for run in run_folders(path):
        for record, file in run.records():
            if record is None:
                warnings.append(unreadable(file))
            else:
                records.append(record)
    return records, warnings


def unreadable(file: Path) -> str:
    """What to tell of a file that is not a readable record."""
    return f"{file} is not a readable record; it is left out (delete its folder to run it again)"


def find_cell(path: Path, prefix: str) -> Path:
    """The newest attempt's folder of the cell whose identity begins with `prefix`.

    Raises:
        UsageError: no cell or several cells begin so.
        InputError: there is no run.
    """
    cells = {
        cell for run in run_folders(path) for cell in (run.path / "cells").iterdir() if cell.name.startswith(prefix)
    }
    if not cells:
        raise UsageError(f"no cell begins with '{prefix}' in {path}", "`dfqbench table --format csv` lists the cells")
    if len({cell.name for cell in cells}) > 1:
        names = ", ".join(sorted(cell.name for cell in cells)[:5])
        raise UsageError(f"several cells begin with '{prefix}': {names}", "write more digits")
    attempts = [attempt for cell in cells for attempt in cell.glob("attempt-*")]
    if not attempts:
        raise UsageError(f"cell {next(iter(cells)).name} has no attempt yet", "run its grid again")
    return max(attempts, key=lambda attempt: (attempt.stat().st_mtime, _number(attempt.name)))
