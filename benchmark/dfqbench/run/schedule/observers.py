"""Calls of the plugins' hooks that observe a run."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from queue import SimpleQueue
from typing import Any

from dfqbench.plugins import Plugins
from dfqbench.run.execute.cancellation import Cancellation
from dfqbench.run.execute.events import Progress
from dfqbench.run.store.record import Record

CELL_KEYS = (
    *("run", "cell_id", "method", "label", "quantizer", "recipe", "params", "target", "model", "scheme"),
    *("budget", "precision", "seed", "threads", "device"),
)
"""Keys of a record that say what is run."""
MOST_WAITING = 10_000
"""Steps that wait for slow hooks; further ones are left out."""
END_SECONDS, CANCELLED_SECONDS = 20.0, 5.0
"""How long a run waits for its hooks after its last cell, and after a cancelled one."""


class Observers:
    """Calls hooks one after the other, in a thread of their own: a slow one holds up no worker, whose time is measured.

    A hook that fails is reported once; the run goes on.

    Args:
        plugins: whose hooks are called.
        say: prints a line; called from any thread.
        cancellation: of the run.
        in_thread: False: hooks are called when a cell has ended, by the calling thread. Plugin code in this process
            must not share the global random generators with hooks that run beside it.
    """

    def __init__(
        self, plugins: Plugins, say: Callable[[str], None], cancellation: Cancellation, *, in_thread: bool
    ) -> None:
        self._plugins = plugins
        self._say = say
        self._cancellation = cancellation
        self._in_thread = in_thread
        self._waiting: SimpleQueue[tuple[str, dict[str, Any]] | None] = SimpleQueue()
        self._failed: set[str] = set()

    def progress(self, record: Record, event: Progress) -> None:
        """Pass on a step of a cell, whose record is new; called from any thread."""
        if self._waiting.qsize() < MOST_WAITING:
            known = record.as_dict()
            cell = {key: known[key] for key in CELL_KEYS}
            facts = {"phase": event.phase.value, "step": event.step, "total": event.total, "scalars": event.scalars}
            self._waiting.put(("progress", {"cell": cell, **facts}))

    def finished(self, record: Record) -> None:
        """Pass on a finished record."""
        self._waiting.put(("record_finished", {"record": record.as_dict()}))
        if not self._in_thread:
            self._waiting.put(None)
            with redirect_stdout(sys.stderr):
                self._call_hooks()

    @contextmanager
    def working(self) -> Iterator[None]:
        """Call hooks during the block, and wait for them after it. What they print goes to standard error."""
        if not self._in_thread:
            yield
            return
        thread = threading.Thread(target=self._call_hooks, name="observers", daemon=True)
        # Redirected here and not in the thread, which may outlive the run.
        with redirect_stdout(sys.stderr):
            thread.start()
            try:
                yield
            finally:
                self._waiting.put(None)
                seconds = END_SECONDS if self._cancellation.reason is None else CANCELLED_SECONDS
                thread.join(seconds)
                if thread.is_alive():
                    self._say(f"observers (plugins, --track) did not end within {seconds:.0f} s; the rest is lost")

    def _call_hooks(self) -> None:
        while (call := self._waiting.get()) is not None:
            hook, facts = call
            for broken in self._plugins.observe(hook, **facts):
                if broken.origin not in self._failed:
                    self._failed.add(broken.origin)
                    self._say(f"plugin {broken.origin} failed in {hook}: {broken.message}; the run goes on")
