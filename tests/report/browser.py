"""A headless Chromium, controlled over its pipe; no further package is needed."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-headless-shell", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def chromium() -> str | None:
    """Return the browser's program: named by DFQBENCH_CHROMIUM, on the path, or None."""
    return os.environ.get("DFQBENCH_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """One page of a browser, which reads commands from one descriptor and writes answers to another."""

    def __init__(self, to: int, back: int) -> None:
        self._to, self._back = to, back
        self._left = b""
        self._number = 0
        self._session: str | None = None
        page = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        self.send("Page.enable")

    def send(self, method: str, **params: Any) -> Any:
        """Send a command and return its result."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]

    def _read(self) -> Any:
        while b"\0" not in self._left:
            part = os.read(self._back, 1 << 16)
            if not part:
                raise RuntimeError("the browser has gone")
            self._left += part
        message, _, self._left = self._left.partition(b"\0")
        return json.loads(message)

    def open(self, file: Path, width: int, height: int, *, script: bool = True) -> None:
        """Open a file in a window of this size and wait until it is loaded."""
        mobile = width < 600
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile)
        self.send("Emulation.setScriptExecutionDisabled", value=not script)
        self.send("Page.navigate", url=file.absolute().as_uri())
        while self._read().get("method") != "Page.loadEventFired":
            pass

    def run(self, expression: str) -> Any:
        """Evaluate an expression in the page and return its value."""
        answer = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(str(answer["exceptionDetails"]))
        return answer["result"].get("value")


@contextlib.contextmanager
def browsing(program: str, profile: Path) -> Iterator[Browser]:
    """Start a browser with a profile of its own, and end it."""
    read_here, write_there = os.pipe()
    read_there, write_here = os.pipe()

    def place() -> None:
        # Chromium wants its pipe at descriptors 3 and 4; both are moved out of each other's way first.
        there, back = os.dup(read_there), os.dup(write_there)
        os.dup2(there, 3)
        os.dup2(back, 4)

    options = ["headless", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "no-first-run", "hide-scrollbars"]
    options += [f"user-data-dir={profile}", "remote-debugging-pipe"]
    process = subprocess.Popen(
        [program, *(f"--{option}" for option in options)],
        preexec_fn=place,  # noqa: PLW1509 - this process has no other thread that matters
        close_fds=False,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(read_there)
    os.close(write_there)
    try:
        yield Browser(write_here, read_here)
    finally:
        process.kill()
        process.wait()
        os.close(write_here)
        os.close(read_here)
