"""The host's end of an evaluator in a process of its own."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from dfqbench.api.errors import DfqError, UsageError
from dfqbench.run.processes import death, spawn


class EvaluatorDiedError(DfqError):
    """The evaluator's process ended in the middle of a request."""


class EvaluatorProcess:
    """A running evaluator; started when first asked, and again after it died.

    Args:
        log: file for what it prints.
        threads: CPU threads.
        device: torch device.
        variables: environment variables that bind it to a device.
    """

    def __init__(self, log: Path, threads: int, device: str, variables: Mapping[str, str] | None = None) -> None:
        self._log = log
        self._threads = threads
        self._device = device
        self._variables = dict(variables or {})
        self._process: subprocess.Popen[str] | None = None
        self._ready = False

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Sends a request and waits for the answer.

        Raises:
            EvaluatorDiedError: its process ended; the next request starts a new one.
            UsageError: it cannot work on the device.
        """
        process = self._process or self._launch()
        try:
            return self._exchange(process, request)
        except (OSError, ValueError) as error:
            self._gone(process, error)

    def _gone(self, process: subprocess.Popen[str], error: Exception) -> NoReturn:
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._forget()
        reason = death(process.returncode, "evaluator")["message"]
        raise EvaluatorDiedError(reason, f"its log is {self._log}") from error

    def start(self) -> None:
        """Starts the process and waits until it is ready.

        Raises:
            UsageError: it cannot work on the device.
            EvaluatorDiedError: it ended before it was ready.
        """
        process = self._process or self._launch()
        if not self._ready:
            try:
                self._greet(process)
            except (OSError, ValueError) as error:
                self._gone(process, error)

    def kill(self) -> None:
        """Ends the process at once, from another thread than the one that asks."""
        process = self._process
        if process is not None:
            process.kill()

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            if self._process.stdin is not None:
                with contextlib.suppress(OSError):
                    self._process.stdin.close()
            try:
                self._process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._forget()

    def _forget(self) -> None:
        process, self._process, self._ready = self._process, None, False
        for stream in (process.stdin, process.stdout) if process is not None else ():
            if stream is not None:
                # A dead process's pipe may not take what is still buffered.
                with contextlib.suppress(OSError):
                    stream.close()

    def _greet(self, process: subprocess.Popen[str]) -> None:
        if process.stdout is None:  # pragma: no cover - always piped
            raise ValueError("no pipe")
        hello = json.loads(process.stdout.readline())
        if "error" in hello:
            process.wait()
            self._forget()
            raise UsageError(hello["error"]["message"])
        self._ready = True

    def _launch(self) -> subprocess.Popen[str]:
        with self._log.open("a", encoding="utf-8") as log:
            process = spawn("dfqbench.run.evaluator", [], log, threads=self._threads, variables=self._variables)
        self._process = process
        self._ready = False
        if process.stdin is not None:
            # A process that is dead already is found out when it is asked.
            with contextlib.suppress(OSError):
                process.stdin.write(json.dumps({"threads": self._threads, "device": self._device}) + "\n")
                process.stdin.flush()
        return process

    def _exchange(self, process: subprocess.Popen[str], request: Mapping[str, Any]) -> dict[str, Any]:
        if process.stdin is None or process.stdout is None:  # pragma: no cover - always piped
            raise ValueError("no pipe")
        if not self._ready:
            self._greet(process)
        process.stdin.write(json.dumps(dict(request)) + "\n")
        process.stdin.flush()
        answer: dict[str, Any] = json.loads(process.stdout.readline())
        return answer
