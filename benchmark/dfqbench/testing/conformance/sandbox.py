"""Run a plugin once in a process of its own that reports its files and connections."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dfqbench.testing.conformance.findings import Fault

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


def run_in_sandbox(offer: LoadedOffer, kind: str, files: Sequence[Path], limit: float) -> DryRun:
    """Import a plugin and run it once in a fresh interpreter, for at most `limit` seconds.

    Args:
        offer: the plugin's offer.
        kind: `method` or `quantizer`.
        files: local plugin files.
        limit: seconds that it may take once torch is loaded.

    Raises:
        Fault: the process did not start.
    """
    from dfqbench.targets.folders import data_folders
    from dfqbench.targets.spec import digits_file

    with tempfile.TemporaryDirectory(prefix="dfqbench-check-") as scratch:
        root = Path(scratch).resolve()
        data, work, answer, log = root / "data", root / "work", root / "answer.json", root / "log"
        work.mkdir()
        data.mkdir()  # for plugins that look for a data folder
        (data / "targets.toml").write_text("")
        (data / "images.npz").write_bytes(b"not to be read")
        guarded = [path for path in (data, *data_folders([]), digits_file()) if path is not None]
        request = {
            "kind": kind,
            "name": offer.name,
            "load": offer.load,
            "path": str(offer.path or ""),
            "files": [str(file) for file in files],
            "work": str(work),
            "guarded": [str(path) for path in guarded],
            "answer": str(answer),
            "limit": limit,
        }
        folders = [str(data), *filter(None, [os.environ.get("DFQBENCH_DATA")])]
        environment = os.environ | {"DFQBENCH_DATA": os.pathsep.join(folders), "PYTHONDONTWRITEBYTECODE": "1"}
        # -P as in a run: a file of the current folder does not stand in for a library.
        command = [sys.executable, "-P", "-m", "dfqbench.testing.conformance.dry_run", json.dumps(request)]
        with log.open("wb") as output:
            streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": output}
            try:
                done = subprocess.run(command, check=False, env=environment, timeout=START_LIMIT + limit, **streams)  # noqa: S603 - our own interpreter
            except subprocess.TimeoutExpired:
                return DryRun(ended=False)
        if not answer.exists():
            last = (log.read_text(errors="replace").strip().splitlines() or ["no message"])[-1]
            raise Fault(f"the dry run did not start: {last}")
        text = answer.read_text(encoding="utf-8")
        if not text:
            return DryRun(ended=True, exit_status=done.returncode)
        return DryRun(ended=False) if text.startswith("Timeout") else DryRun(ended=True, **json.loads(text))
