"""Kill the process that loads this module, or its parent, at a point that the harness has armed.

Python loads it in every process of a run whose PYTHONPATH names this folder. The program itself is unchanged: file
operations, and the steps of the harness's toy method, are audit events.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sys
from typing import Any

FOLDER = os.environ.get("DFQBENCH_FAULTS", "")
"""Armed faults, one `<number>.json` each; a fault that has fired is renamed to `<number>.fired`."""
PARENT = "DFQBENCH_FAULTS_PARENT"  # the process number of the run, for the processes that it starts
PART = re.compile(r"\.?(?P<name>.+?)(\.[0-9a-f]{8})?\.part")


class _Faults:
    def __init__(self) -> None:
        modules = [word for word in sys.orig_argv if word.startswith("dfqbench.run.")]
        self.role = modules[0].split(".")[2] if modules else "parent"
        if self.role == "parent":
            os.environ[PARENT] = str(os.getpid())
        self.paused = False
        self.dying = False
        self.armed: dict[str, list[dict[str, Any]]] = {}
        for name in sorted(os.listdir(FOLDER)):
            file = os.path.join(FOLDER, name)
            if name.endswith(".json"):
                with contextlib.suppress(OSError), open(file, encoding="utf-8") as stream:
                    fault = json.load(stream) | {"file": file}
                    if fault["role"] == self.role:
                        self.armed.setdefault(fault["point"], []).append(fault)

    def hook(self, event: str, args: tuple[Any, ...]) -> None:
        if self.paused or event not in {"open", "os.rename", "toy.step"}:
            return
        if self.dying:
            os.kill(os.getpid(), signal.SIGKILL)
        path = args[event == "os.rename"]
        if event == "toy.step":
            self.reach(path, "")
        elif isinstance(path, str | os.PathLike):
            name = os.path.basename(os.fspath(path))
            part = PART.fullmatch(name)
            name = part["name"] if part else name
            operation = "rename" if event == "os.rename" else "part" if part else "open"
            self.reach(f"{operation}:{'checkpoint' if name.startswith('checkpoint-') else name}", os.fspath(args[0]))

    def reach(self, point: str, path: str) -> None:
        for fault in self.armed.get(point, ()):
            fault["skip"] -= 1
            if fault["skip"] >= 0:
                continue
            self.paused = True
            try:
                # Only one of several processes that reach the point can rename the file.
                os.rename(fault["file"], fault["file"].removesuffix(".json") + ".fired")
            except OSError:
                continue
            finally:
                self.paused = False
            self.strike(fault["victim"], path)

    def strike(self, victim: str, path: str) -> None:
        if victim == "tear":
            # A power cut leaves the new name with half of the content; the process dies at its next file operation.
            os.truncate(path, os.path.getsize(path) // 2)
            self.dying = True
        elif victim == "self":
            os.kill(os.getpid(), signal.SIGKILL)
        elif str(os.getppid()) == os.environ.get(PARENT):
            # The parent of an orphan is another process, which must live.
            os.kill(os.getppid(), signal.SIGKILL)


if FOLDER:
    sys.addaudithook(_Faults().hook)
