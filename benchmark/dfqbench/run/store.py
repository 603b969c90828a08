"""The store: folders of attempts, records written whole or not at all, and reading them back."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dfqbench.api.errors import InputError, UsageError

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = 1
"""Number of the record's schema; older numbers stay readable."""
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
        number = 1 + max((_number(folder) for folder in cell.glob("attempt-*")), default=0)
        while True:
            folder = cell / f"attempt-{number}"
            try:
                folder.mkdir()
            except FileExistsError:
                number += 1
                continue
            return folder, number

    def latest(self, cell_id: str) -> dict[str, Any] | None:
        """The newest readable record of a cell, or None."""
        found = [record for record, _ in self._cell_records(self.path / "cells" / cell_id) if record is not None]
        return found[-1] if found else None

    def records(self) -> Iterator[tuple[dict[str, Any] | None, Path]]:
        """Every record of the run with its file; None where the file cannot be read."""
        cells = self.path / "cells"
        for cell in sorted(cells.iterdir()) if cells.is_dir() else ():
            yield from self._cell_records(cell)

    def _cell_records(self, cell: Path) -> Iterator[tuple[dict[str, Any] | None, Path]]:
        for attempt in sorted(cell.glob("attempt-*"), key=_number):
            path = attempt / RECORD
            if path.is_file():
                yield _read(path), path

    def write_record(self, attempt: Path, record: Mapping[str, Any]) -> None:
        """Writes an attempt's record, whole or not at all."""
        write_json(attempt / RECORD, dict(record))

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


def _number(attempt: Path) -> int:
    text = attempt.name.partition("-")[2]
    return int(text) if text.isdigit() else 0


def _read(path: Path) -> dict[str, Any] | None:
    try:
        if path.stat().st_size > MOST_BYTES:
            return None
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return record if _is_record(record) else None


def _is_record(data: Any) -> bool:
    """Whether the keys that decide anything have the right types; unknown keys are nobody's business."""
    if not isinstance(data, dict) or not isinstance(data.get("schema"), int):
        return False
    if not isinstance(data.get("status"), str) or not isinstance(data.get("cell_id"), str):
        return False
    tables = ("seconds", "error", "model", "scheme", "dataset", "params", "coverage", "counts", "peak_mib")
    if any(not isinstance(data.get(key), dict | None) for key in tables):
        return False
    numbers = [data.get(key) for key in ("top1", "fp_top1", "drop", "top1_se", "agreement", "seed", "attempt")]
    numbers += list((data.get("seconds") or {}).values())
    return all(value is None or isinstance(value, int | float) for value in numbers)


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


def read_records(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
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
                warnings.append(f"{file} is not a readable record; it is left out (delete its folder to run it again)")
            else:
                records.append(record)
    return records, warnings


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
    return max(attempts, key=lambda attempt: (attempt.stat().st_mtime, _number(attempt)))


def records(path: Path | str = DEFAULT_OUT) -> pd.DataFrame:
    """Every readable record at a path as a table, one row an attempt.

    Args:
        path: a run's folder or a folder of runs.

    Raises:
        InputError: there is no run.
    """
    from dfqbench.report.frame import frame

    return frame(read_records(Path(path))[0])
