"""Asking an attempt to stop; light, so that a worker hears signals before torch is loaded."""

from __future__ import annotations

import signal

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
"""Signals that ask an attempt to keep its state and end."""


class Stopped(BaseException):
    """Ends an attempt from within a plugin's loop; no `except Exception` can hold it.

    Args:
        kept: whether a state was written just before.
    """

    def __init__(self, kept: bool) -> None:
        super().__init__(kept)
        self.kept = kept


class StopFlag:
    """Whether the attempt shall stop.

    Attributes:
        asked: set by the signals once `listen` was called.
    """

    def __init__(self) -> None:
        self.asked = False

    def listen(self) -> None:
        """Takes the stop signals of this process."""
        for number in STOP_SIGNALS:
            signal.signal(number, self._ask)

    def _ask(self, _number: int, _frame: object) -> None:
        self.asked = True
