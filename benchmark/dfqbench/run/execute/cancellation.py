"""Cancellation of a run: by signal, or because too much has failed."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

Reason = Literal["interrupt", "signal", "failures", "storage", "walltime"]
"""`interrupt`: Ctrl-C. `signal`: SIGTERM, SIGUSR1 or SIGUSR2 (batch systems differ). `failures`: as many cells failed
as were allowed. `storage`: the results folder cannot be written. `walltime`: a batch job has too little time left to
begin a cell."""
_STOP: dict[int, Reason] = {signal.SIGINT: "interrupt", signal.SIGTERM: "signal", signal.SIGUSR1: "signal"}
_SIGNALS: dict[int, Reason] = {**_STOP, signal.SIGUSR2: "signal"}
"""Of a run. To a worker SIGUSR2 means to write its stacks."""

_POLL = 0.05
"""Seconds between looks at a request."""


class Cancellation:
    """The state of a run's cancellation.

    Attributes:
        reason: why the run must stop, or None: it goes on.
        hurry: whether workers are killed without waiting for their state.
        signal_name: name of the signal, or empty.
    """

    def __init__(self) -> None:
        self.reason: Reason | None = None
        self.hurry = False
        self.signal_name = ""

    def request(self, reason: Reason) -> None:
        """Request the end of the run; the first reason stays.

        A signal handler calls this, so that it takes no lock: the main thread may hold that lock.
        """
        if self.reason is None:
            self.reason = reason

    def wait(self, seconds: float) -> None:
        """Wait until the end is requested, at most so long."""
        end = time.monotonic() + seconds
        while self.reason is None and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, _POLL))

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """Let signals request the end, and SIGINT and SIGTERM hurry the second time; in the main thread only."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _handle(self, number: int, _frame: object) -> None:
        if self.reason is not None and number not in {signal.SIGUSR1, signal.SIGUSR2}:
            self.hurry = True
        self.signal_name = signal.Signals(number).name
        self.request(_SIGNALS[number])


class Stopped(BaseException):
    """End an attempt from inside a plugin's loop; no `except Exception` catches it.

    Args:
        kept: whether a checkpoint was written just before.
    """

    def __init__(self, kept: bool) -> None:
        super().__init__(kept)
        self.kept = kept


class StopFlag:
    """Whether an attempt shall stop; read by its worker at step boundaries.

    Attributes:
        requested: set by the signals once `install` was called.
    """

    def __init__(self) -> None:
        self.requested = False

    def install(self) -> None:
        """Handle the stop signals of this process."""
        for number in _STOP:
            signal.signal(number, self._request)

    def _request(self, _number: int, _frame: object) -> None:
        self.requested = True
