"""The runs that a name or a path means, and their records."""

from __future__ import annotations

import gc
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from dfqbench.api.errors import InputError, UsageError, unknown_name
from dfqbench.models.identity import is_folder
from dfqbench.run.cluster.peers import PEERS
from dfqbench.run.cluster.submission import SLURM
from dfqbench.run.store.run_folder import RunFolder, collection_paused, run_folders, unreadable

if TYPE_CHECKING:
    from dfqbench.run.store.record import Record


@dataclass(frozen=True, slots=True)
class Selection:
    """The runs of a command.

    Attributes:
        folders: of each run.
        place: where files about them belong: the run's folder, or the folder of the runs.
        title: the run's name; `all runs` where there may be several.
    """

    folders: list[RunFolder]
    place: Path
    title: str

    def only(self) -> RunFolder:
        """Return the folder of the only run; refuse several."""
        if len(self.folders) > 1:
            names = ", ".join(folder.name for folder in self.folders)
            raise UsageError(f"{self.place} holds several runs: {names}", "name one of them")
        return self.folders[0]


def select(out: Path, run: str | None) -> Selection:
    """Return the runs that `run` means: a name below `out`, the path of a run or of a folder of runs, or None for all.

    A name comes before a path.
    """
    if run is None:
        return _at(out)
    try:
        names = {folder.name: folder for folder in run_folders(out)}
    except InputError:
        names = {}
    if run in names:
        return Selection([names[run]], names[run].path, run)
    if run and is_folder(Path(run)):
        return _at(Path(run))
    if names and os.sep not in run:
        raise unknown_name("run", run, names)
    there = f"runs in {out}: {', '.join(names)}" if names else f"{out} holds no run either"
    raise InputError(f"'{run}' is no folder and no run", f"{there}; name a run, its folder, or a folder of runs")


def started(out: Path, run: str) -> RunFolder:
    """Return the folder of one run, by name or path, as soon as it is begun or submitted: before it has a cell."""
    for path in (out / run, Path(run)):
        if run and any((path / name).is_dir() for name in ("cells", PEERS, SLURM)):
            return RunFolder(path.absolute(), path)
    return select(out, run).only()


def read_attempts(runs: Selection) -> tuple[list[tuple[Record, Path]], dict[str, str]]:
    """Read the records of runs; warn on standard error of unreadable ones.

    Returns:
        Each record with the folder of its attempt, and the description of each environment by its id.
    """
    from dfqbench.report import describe_hardware

    attempts: list[tuple[Record, Path]] = []
    environments: dict[str, str] = {}
    with collection_paused():
        for folder in runs.folders:
            for record, file in folder.records():
                if record is None:
                    typer.echo(f"dfqbench: warning: {unreadable(file)}", err=True)
                else:
                    attempts.append((record, file.parent))
            environments |= describe_hardware(folder.path)
        # Records live as long as this process: the collector need not visit them.
        gc.freeze()
    return attempts, environments


def _at(path: Path) -> Selection:
    folders = run_folders(path)
    # The name of `.` is known only once it is resolved.
    folders = [RunFolder(folder.path.resolve()) if folder.path == Path() else folder for folder in folders]
    return Selection(folders, path, folders[0].name if (path / "cells").is_dir() else "all runs")
