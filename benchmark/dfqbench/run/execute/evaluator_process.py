"""The host's end of an evaluator in a process of its own."""

from __future__ import annotations

import contextlib
import json
import subprocess
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from dfqbench.api.errors import UsageError
from dfqbench.run.execute.executor import EvaluationTimeoutError, EvaluatorDiedError
from dfqbench.run.execute.processes import death, spawn


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

    def ask(self, request: Mapping[str, Any], limit: float = 0.0) -> dict[str, Any]:
        """Sends a request and waits for the answer.

        Args:
            request: what to do.
            limit: seconds until the process is ended, its start included; 0: never.

        Raises:
            EvaluatorDiedError: its process ended; the next request starts a new one.
            EvaluationTimeoutError: the limit was reached.
            UsageError: it cannot work on the device.
        """
        process = self._process or self._launch()
        late = threading.Event()

        def give_up() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(limit, give_up) if limit else None
        if timer is not None:
            timer.start()
        try:
            answer = self._exchange(process, request)
        except (OSError, ValueError) as error:
            if late.is_set():
                self._end(process)
                hint = "give it more with --evaluation-limit, or look whether the evaluation set can be read"
                raise EvaluationTimeoutError(f"the evaluation's time limit of {limit:g} s was reached", hint) from error
            self._gone(process, error)
        finally:
            if timer is not None:
                timer.cancel()
        if late.is_set():
            # The answer came at the last moment; the next request needs another process.
            self._end(process)
        return answer

    def _end(self, process: subprocess.Popen[str]) -> None:
        """Waits for a process that is ending or shall."""
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._forget()

    def _gone(self, process: subprocess.Popen[str], error: Exception) -> NoReturn:
        self._end(process)
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
            process = spawn(
                "dfqbench.run.evaluate.evaluator", [], log, threads=self._threads, variables=self._variables
            )
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
