"""A rehearsal in a process of its own: does it end, and does it keep its hands off other people's files?"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dfqbench.testing.conformance.check import Fault

if TYPE_CHECKING:
    from dfqbench.testing.conformance.subject import Subject

START_LIMIT = 300.0
"""Seconds in which the process must have loaded torch."""


@dataclass(frozen=True, slots=True)
class Rehearsed:
    """What was seen of a run in a process of its own.

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


def ends(subject: Subject) -> Iterable[str]:
    """A run on a toy network comes to its end."""
    found = subject.rehearsed
    if not found.ended:
        raise Fault(
            f"it did not end within {subject.limit:.0f} s on a toy network",
            "scale its steps by ctx.budget.training_steps(...) or .image_steps(...), and leave no endless loop",
        )
    if found.exit_status is not None:
        raise Fault(
            f"it ended the process with status {found.exit_status}",
            "raise an exception instead of os._exit; a negative status is the signal that killed it",
        )
    if found.error:
        raise Fault(f"it failed in a process of its own: {found.error}", "repair it there")
    return ()


def confined(subject: Subject) -> Iterable[str]:
    """Nothing is written outside the work folder, nothing read under a data folder, nothing fetched."""
    found = subject.rehearsed
    if found.read:
        raise Fault(f"it opens real data: {', '.join(found.read[:3])}", "data-free methods get no data; remove it")
    if found.written:
        raise Fault(
            f"it writes outside its work folder: {', '.join(found.written[:3])}",
            "write below ctx.workdir only, or better nothing at all",
        )
    if found.connected:
        raise Fault(
            f"it connects to {', '.join(found.connected[:3])}", "fetch nothing while it runs; ship files in the package"
        )
    return ()


def rehearse(subject: Subject) -> Rehearsed:
    """Runs import, synthesis, drawing and quantization once in a fresh interpreter that watches files and sockets."""
    with tempfile.TemporaryDirectory(prefix="dfqbench-check-") as scratch:
        root = Path(scratch).resolve()
        data, work = root / "data", root / "work"
        _decoy(data)
        work.mkdir()
        request = {
            "name": subject.name,
            "load": subject.offer.load,
            "path": str(subject.offer.path or ""),
            "files": [str(file) for file in subject.plugins.files],
            "work": str(work),
            "guarded": [str(path) for path in (data, *_real_data())],
        }
        folders = [str(data), *filter(None, [os.environ.get("DFQBENCH_DATA")])]
        environment = os.environ | {"DFQBENCH_DATA": os.pathsep.join(folders), "PYTHONDONTWRITEBYTECODE": "1"}
        return _answer(request, environment, subject.limit, root / "log")


def _decoy(folder: Path) -> None:
    """A data folder with something in it, for a plugin that looks for one."""
    folder.mkdir()
    (folder / "targets.toml").write_text("")
    (folder / "images.npz").write_bytes(b"not read by anybody")


def _real_data() -> list[Path]:
    from dfqbench.targets.folders import data_folders
    from dfqbench.targets.spec import digits_file

    digits = digits_file()
    return [*data_folders([]), *([digits] if digits is not None else [])]


def _answer(request: dict[str, Any], environment: dict[str, str], limit: float, log: Path) -> Rehearsed:
    command = [sys.executable, "-m", "dfqbench.testing.conformance.rehearsal", json.dumps(request)]
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
        return Rehearsed(ended=False)
    finally:
        late.cancel()
        if process.poll() is None:
            process.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()
    for line in out.splitlines():
        if line.startswith("{"):
            return Rehearsed(ended=True, **json.loads(line))
    if not ready:
        raise Fault(f"the rehearsal did not start: {log.read_text(errors='replace')[-500:]}")
    return Rehearsed(ended=True, exit_status=process.returncode)
