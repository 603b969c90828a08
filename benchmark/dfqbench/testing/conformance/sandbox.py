"""Run a method once in a process of its own that reports its files and connections."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dfqbench.testing.conformance.fault import Fault

if TYPE_CHECKING:
    from dfqbench.plugins import LoadedOffer

START_LIMIT = 300.0
"""Seconds in which the process must have loaded torch."""


@dataclass(frozen=True, slots=True)
class DryRun:
    """The result of a dry run.

    Attributes:
        ended: whether it came to an end within the limit.
        exit_status: of the process, where it ended without an answer; else None.
        error: what the plugin raised, or empty.
        written: paths outside the work folder that it wrote to.
        read: paths of real data that it opened.
        connected: addresses that it connected to.
        random: global generators and settings that importing the plugin changed.
    """

    ended: bool
    exit_status: int | None = None
    error: str = ""
    written: list[str] = field(default_factory=list)
    read: list[str] = field(default_factory=list)
    connected: list[str] = field(default_factory=list)
    random: list[str] = field(default_factory=list)


def run_in_sandbox(offer: LoadedOffer, files: Sequence[Path], limit: float) -> DryRun:
    """Run import, synthesis, drawing and quantization once in a fresh interpreter that watches files and sockets.

    Args:
        offer: the method's offer.
        files: local plugin files to load.
        limit: seconds that the run may take.

    Raises:
        Fault: the process did not start.
    """
    with tempfile.TemporaryDirectory(prefix="dfqbench-check-") as scratch:
        root = Path(scratch).resolve()
        data, work = root / "data", root / "work"
        _decoy(data)
        work.mkdir()
        request = {
            "name": offer.name,
            "load": offer.load,
            "path": str(offer.path or ""),
            "files": [str(file) for file in files],
            "work": str(work),
            "guarded": [str(path) for path in (data, *_real_data())],
        }
        folders = [str(data), *filter(None, [os.environ.get("DFQBENCH_DATA")])]
        environment = os.environ | {"DFQBENCH_DATA": os.pathsep.join(folders), "PYTHONDONTWRITEBYTECODE": "1"}
        return _answer(request, environment, limit, root / "log")


def _decoy(folder: Path) -> None:
    """A data folder with something in it, for a plugin that looks for one."""
    folder.mkdir()
    (folder / "targets.toml").write_text("")
    (folder / "images.npz").write_bytes(b"not to be read")


def _real_data() -> list[Path]:
    from dfqbench.targets.folders import data_folders
    from dfqbench.targets.spec import digits_file

    digits = digits_file()
    return [*data_folders([]), *([digits] if digits is not None else [])]


def _answer(request: dict[str, Any], environment: dict[str, str], limit: float, log: Path) -> DryRun:
    command = [sys.executable, "-m", "dfqbench.testing.conformance.dry_run", json.dumps(request)]
    with log.open("wb") as errors:
        process = subprocess.Popen(  # noqa: S603 - our own interpreter
            command, stdout=subprocess.PIPE, stderr=errors, stdin=subprocess.DEVNULL, text=True, env=environment
        )
    late = threading.Timer(START_LIMIT, process.kill)
    late.start()
    try:
        ready = process.stdout.readline() if process.stdout else ""
        late.cancel()
        out, _ = process.communicate(timeout=limit if ready else None)
    except subprocess.TimeoutExpired:
        return DryRun(ended=False)
    finally:
        late.cancel()
        if process.poll() is None:
            process.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()
    for line in out.splitlines():
        if line.startswith("{"):
            return DryRun(ended=True, **json.loads(line))
    if not ready:
        raise Fault(f"the dry run did not start: {log.read_text(errors='replace')[-500:]}")
    return DryRun(ended=True, exit_status=process.returncode)
