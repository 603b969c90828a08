"""The worker's line to its parent."""

from __future__ import annotations

import json
import os
from typing import IO, Any, Protocol


class Sink(Protocol):
    """Takes the events of an attempt."""

    def send(self, event: str, **data: Any) -> None:
        """Sends one event."""
        ...


class Channel:
    """The line to the parent. Keeps the real standard output to itself and points the old one at the log."""

    def __init__(self) -> None:
        self._stream: IO[str] = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
        os.dup2(2, 1)

    def send(self, event: str, **data: Any) -> None:
        """Sends one event."""
        self._stream.write(json.dumps({"event": event, **data}, default=str) + "\n")
        self._stream.flush()
