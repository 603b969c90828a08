"""What was submitted of a run: `<run>/slurm/submission.json`, and a script for each submission."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dfqbench.api.errors import InputError, UsageError
from dfqbench.run.cluster import slurm
from dfqbench.run.store.files import write_json, write_text
from dfqbench.run.store.record import now

SLURM = "slurm"
"""Folder of scripts and logs in a run's."""
_FILE = "submission.json"


@dataclass(frozen=True, slots=True)
class Submission:
    """What was submitted of a run."""

    jobs: list[str]  # their ids
    cells: int | None  # planned at the last submission; None: nothing was submitted


def read_submission(run: Path) -> Submission:
    """Return what was submitted of a run.

    Raises:
        InputError: the file of it is damaged.
    """
    jobs = _read(run).get("jobs", [])
    return Submission([str(job["id"]) for job in jobs], jobs[-1].get("cells") if jobs else None)


def submitted_at(run: Path, job: str) -> str:
    """Return when the array of a job of this run was submitted, as records have times; empty: not by `submit`.

    Args:
        run: the run's folder.
        job: see `job_id`.
    """
    array = job.partition("_")[0]
    with contextlib.suppress(InputError):
        for entry in _read(run).get("jobs", []):
            # With a cluster's name behind it where there are several.
            if str(entry["id"]).partition(";")[0] == array:
                return str(entry.get("submitted_at", ""))
    return ""


def check_same(run: Path, what: Mapping[str, Any]) -> None:
    """Refuse to submit a run another time with another grid.

    Raises:
        UsageError: `what`, the grid and its targets, is not what was submitted before.
    """
    before = _read(run)
    if before and before.get("what") != what:
        raise UsageError(f"run '{run.name}' was submitted with another grid", "name another run with --name")


def submit_peers(run: Path, script: str, what: Mapping[str, Any], **about: Any) -> str:
    """Submit a script and keep its job's id; where anything fails, nothing stays submitted.

    Args:
        run: the run's folder.
        script: for `sbatch`.
        what: the grid and its targets.
        about: further facts of the submission to keep.

    Returns:
        The job's id.

    Raises:
        SlurmError: sbatch refuses the script.
        OSError: the run's folder cannot be written.
    """
    earlier = _read(run).get("jobs", [])
    with slurm_folder(run) as folder:
        job = slurm.submit(script)
        try:
            write_text(folder / f"{job.partition(';')[0]}.sh", script)
            write_json(folder / _FILE, {"what": what, "jobs": [*earlier, {"id": job, "submitted_at": now(), **about}]})
        except BaseException:
            slurm.cancel([job])
            raise
    return job


@contextmanager
def slurm_folder(run: Path) -> Iterator[Path]:
    """Make the folder of scripts and logs, into which SLURM writes from the beginning; remove it if it stays empty."""
    folder = run / SLURM
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield folder
    finally:
        with contextlib.suppress(OSError):
            for path in made:
                path.rmdir()


def _read(run: Path) -> dict[str, Any]:
    file = run / SLURM / _FILE
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        return {**data, "jobs": [{**job} for job in data["jobs"] if job["id"]]}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InputError(f"{file} cannot be read: {error}", "delete it if none of the run's jobs is left") from error
