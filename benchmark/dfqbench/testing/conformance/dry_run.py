"""The process of a dry run: `python -m dfqbench.testing.conformance.dry_run REQUEST`."""

from __future__ import annotations

import faulthandler
import importlib
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "os.symlink", "os.link"}
"""Audit events that change the file system."""
TWO_PATHS = {"os.rename", "os.symlink", "os.link"}
"""Those whose second argument is the changed path."""
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
HARMLESS = ("/dev/null", "/dev/tty", "/dev/stdout", "/dev/stderr", "/proc/")


class WriteGuard:
    """Note connections, and what is written outside a folder.

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
        elif event in CHANGES:
            self._note(args[event in TWO_PATHS])
        elif event == "open" and isinstance(args[2], int) and args[2] & WRITING:
            self._note(args[0])

    def _note(self, path: object) -> None:
        if not isinstance(path, str | bytes | os.PathLike):
            return
        place = os.path.realpath(os.fsdecode(path))
        harmless = Path(place).is_relative_to(self._work) or "__pycache__" in place or place.startswith(HARMLESS)
        if not harmless and place not in self.written:
            self.written.append(place)


def main(request: dict[str, Any]) -> None:
    """Run the plugin once; write files, connections and errors as JSON into the file `request["answer"]`."""
    from dfqbench.isolation import import_local
    from dfqbench.plugins import load_plugins
    from dfqbench.plugins.offers import one_line
    from dfqbench.run.worker.plugin_checks import DataGuard
    from dfqbench.testing.conformance.images import changes, random_state
    from dfqbench.testing.conformance.method_under_test import MethodUnderTest
    from dfqbench.testing.conformance.quantizer_under_test import QuantizerUnderTest

    _initialize_torch()
    answer, work = Path(request["answer"]), Path(request["work"])
    # After the limit Python writes "Timeout" and a traceback, and ends the process, whatever plugin code is doing.
    timeout = answer.open("w", encoding="utf-8")
    faulthandler.dump_traceback_later(request["limit"], exit=True, file=timeout)
    data, writes = DataGuard(Path(path) for path in request["guarded"]), WriteGuard(work)
    error = ""
    before = random_state()
    try:
        with data.watching(), writes.watching():
            if request["path"]:
                import_local(Path(request["path"]))
            else:
                importlib.import_module(request["load"].partition(":")[0])
        changed = changes(before, random_state())
        under_test = {"method": MethodUnderTest, "quantizer": QuantizerUnderTest}[request["kind"]]
        plugin = under_test(load_plugins([Path(file) for file in request["files"]]), request["name"])
        _ = plugin.plugin_class
        with data.watching(), writes.watching():
            plugin.run_once(work)
    except Exception as caught:
        changed = changes(before, random_state())
        error = one_line(caught)
    faulthandler.cancel_dump_traceback_later()
    result = {"error": error, "written": writes.written, "read": data.hits}
    result |= {"connected": writes.connected, "random": changed}
    answer.write_text(json.dumps(result), encoding="utf-8")


def _initialize_torch() -> None:
    """Run what torch does only once in a process, in folders of its own, before writes are counted."""
    import tempfile

    import torch

    from dfqbench.testing.toys import toy_network

    tempfile.gettempdir()
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    optimizer = torch.optim.Adam([images])
    toy_network()(images).sum().backward()
    optimizer.step()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
    sys.stderr.flush()
    # A plugin's threads must not keep the process.
    os._exit(0)
