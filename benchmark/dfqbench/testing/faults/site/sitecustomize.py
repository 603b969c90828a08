"""Kills the process that it is loaded into, or its parent, at a point that the harness has armed.

Python loads it in every process of a run whose PYTHONPATH names this folder. What runs is the unchanged program: file
operations are heard through Python's audit events, and the harness's toy method says which step it has come to.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from typing import Any

FOLDER = os.environ.get("DFQBENCH_FAULTS", "")
"""Armed faults, one `<number>.json` each; a fault that has fired is renamed to `<number>.fired`."""
PARENT = "DFQBENCH_FAULTS_PARENT"
"""Where the run's own process leaves its number for the processes that it starts."""


def _role() -> str:
    words = sys.orig_argv
    for name in ("worker", "evaluator"):
        if f"dfqbench.run.{name}" in words:
            return name
    return "parent"


class _Faults:
    def __init__(self) -> None:
        self.role = _role()
        if self.role == "parent":
            os.environ[PARENT] = str(os.getpid())
        self.busy = False
        self.last_word = False
        self.armed: dict[str, list[dict[str, Any]]] = {}
        self.counts: dict[str, int] = {}
        for name in sorted(os.listdir(FOLDER)):
            if name.endswith(".json"):
                with contextlib.suppress(OSError), open(os.path.join(FOLDER, name), encoding="utf-8") as stream:
                    fault = json.load(stream) | {"file": os.path.join(FOLDER, name)}
                    if fault["role"] == self.role:
                        self.armed.setdefault(fault["point"], []).append(fault)

    def hear(self, event: str, args: tuple[Any, ...]) -> None:
        if self.busy or event not in {"open", "os.rename"}:
            return
        if self.last_word:
            os.kill(os.getpid(), signal.SIGKILL)
        path = args[1] if event == "os.rename" else args[0]
        if isinstance(path, str | os.PathLike):
            kind, name = _named(os.fspath(path))
            self.reach(f"{'rename' if event == 'os.rename' else kind}:{name}", os.fspath(args[0]))

    def reach(self, point: str, path: str = "") -> None:
        for fault in self.armed.get(point, ()):
            count = self.counts[fault["file"]] = self.counts.get(fault["file"], 0) + 1
            if count <= fault["skip"]:
                continue
            self.busy = True
            try:
                # Of several processes that come to the point, one has it.
                os.rename(fault["file"], fault["file"].removesuffix(".json") + ".fired")
            except OSError:
                continue
            finally:
                self.busy = False
            self.strike(fault["victim"], path)

    def strike(self, victim: str, path: str) -> None:
        if victim == "tear":
            # What a power cut leaves: the new name, and half of the content.
            os.truncate(path, os.path.getsize(path) // 2)
            self.last_word = True
        elif victim == "self":
            os.kill(os.getpid(), signal.SIGKILL)
        elif str(os.getppid()) == os.environ.get(PARENT):
            # An orphan's parent is somebody else, who must live.
            os.kill(os.getppid(), signal.SIGKILL)


def _named(path: str) -> tuple[str, str]:
    """`part` and the final name for a file under its temporary name, else `open` and the name."""
    kind, name = "open", os.path.basename(path)
    if name.endswith(".part"):
        kind, name = "part", name.removesuffix(".part").lstrip(".")
        stem, _, tail = name.rpartition(".")
        name = stem if len(tail) == 8 and all(c in "0123456789abcdef" for c in tail) else name
    return kind, "checkpoint" if name.startswith("checkpoint-") else name


if FOLDER:
    _faults = _Faults()
    reach = _faults.reach
    sys.addaudithook(_faults.hear)
else:

    def reach(point: str, path: str = "") -> None:
        """Nothing is armed."""
