"""The process of a dry run: `python -m dfqbench.testing.conformance.dry_run REQUEST`."""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHANGING = {
    "os.mkdir": 0,
    "os.rename": 1,
    "os.remove": 0,
    "os.rmdir": 0,
    "os.truncate": 0,
    "os.symlink": 1,
    "os.link": 1,
}
"""Audit events that change the file system, with the index of the path that is changed."""
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
HARMLESS = ("/dev/null", "/dev/tty", "/dev/stdout", "/dev/stderr", "/proc/")


class WriteGuard:
    """Notes what is written outside a folder, and connections.

    Attributes:
        written: paths.
        connected: addresses.
    """

    def __init__(self, work: Path) -> None:
        self.written: list[str] = []
        self.connected: list[str] = []
        self._work = work
        self._watching = False
        sys.addaudithook(self._hook)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Count writes in the block."""
        self._watching = True
        try:
            yield
        finally:
            self._watching = False

    def _hook(self, event: str, args: tuple[Any, ...]) -> None:
        if not self._watching:
            return
        if event == "socket.connect":
            self.connected.append(str(args[1]))
        elif event in CHANGING:
            self._note(args[CHANGING[event]])
        elif event == "open" and isinstance(args[2], int) and args[2] & WRITING:
            self._note(args[0])

    def _note(self, path: object) -> None:
        if not isinstance(path, str | bytes | os.PathLike):
            return
        self._watching = False  # resolving a path must not be heard
        try:
            place = os.path.realpath(os.fsdecode(path))
        finally:
            self._watching = True
        inside = place == str(self._work) or place.startswith(f"{self._work}{os.sep}")
        if not inside and "__pycache__" not in place and not place.startswith(HARMLESS) and place not in self.written:
            self.written.append(place)


def main(argv: list[str]) -> int:
    """Run the method once and print files, connections and errors as one line of JSON.

    Args:
        argv: the request.

    Returns:
        0.
    """
    request = json.loads(argv[0])
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)  # what plugin code prints must not meet the answer

    from dfqbench.isolation import import_local
    from dfqbench.plugins import load_plugins
    from dfqbench.plugins.offers import one_line
    from dfqbench.quant import parse_scheme
    from dfqbench.run.worker.data_guard import DataGuard
    from dfqbench.testing.conformance.images import changes, random_state
    from dfqbench.testing.conformance.method_under_test import MethodUnderTest
    from dfqbench.testing.toys import toy_network

    _warm(toy_network())
    data, writes = DataGuard(Path(path) for path in request["guarded"]), WriteGuard(Path(request["work"]))
    answers.write("ready\n")
    error = ""
    before = random_state()
    try:
        with data.watching(), writes.watching():
            if request["path"]:
                import_local(Path(request["path"]))
            else:
                importlib.import_module(request["load"].partition(":")[0])
        changed = changes(before, random_state())
        method = MethodUnderTest(load_plugins([Path(file) for file in request["files"]]), request["name"])
        _ = method.method_class
        ctx = method.context(fixed_workdir=Path(request["work"]))
        with data.watching(), writes.watching():
            run = method.synthesized(ctx=ctx)
            method.drawn(run)
            method.quantized(run, "", parse_scheme("w4a4@gdfq"))
    except Exception as caught:
        changed = changes(before, random_state())
        error = one_line(caught)
    answers.write(
        json.dumps(
            {
                "error": error,
                "written": writes.written,
                "read": data.hits,
                "connected": writes.connected,
                "random": changed,
            }
        )
        + "\n"
    )
    answers.flush()
    return 0


def _warm(network: Any) -> None:
    """Runs what torch does only once in a process (and in folders of its own), so that no plugin is charged with it."""
    import tempfile

    import torch

    tempfile.gettempdir()
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    optimizer = torch.optim.Adam([images])
    network(images).sum().backward()
    optimizer.step()


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stderr.flush()
    # A plugin's threads must not keep the process.
    os._exit(status)
