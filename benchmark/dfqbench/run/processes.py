"""The host's end of its processes: the worker of an attempt, and the evaluator."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, Protocol

from dfqbench.api.errors import DfqError, UsageError
from dfqbench.run.job import JOB, Job, Outcome
from dfqbench.targets.folders import VARIABLE

LOG = "log.txt"
ALLOCATOR = "glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=8589934592:glibc.malloc.hugetlb=1"
"""Large tensors are given and taken back at every step; kept by the process instead of returned to the kernel they cost
no fresh pages (8 % of a step of GDFQ on one core; the results are the same). Read by glibc, ignored elsewhere."""
OnEvent = Callable[[Mapping[str, Any]], None]


class Executor(Protocol):
    """Runs jobs; the runner knows nothing of where."""

    def run(self, job: Job, on_event: OnEvent) -> Outcome:
        """Runs a job to its end.

        Args:
            job: what to run; its attempt folder exists.
            on_event: is told of phases and progress; may return True to end the job.
        """
        ...


class LocalExecutor:
    """One spawned process a job, on this machine. Its environment holds no path of real data."""

    def run(self, job: Job, on_event: OnEvent) -> Outcome:
        """Runs a job in a process of its own and waits for it."""
        folder = Path(job.attempt)
        job.write(folder / JOB)
        outcome = Outcome("failed")
        # Leaving the block closes the pipes; a worker ends when its standard input does.
        with (
            (folder / LOG).open("w", encoding="utf-8") as log,
            _spawn("dfqbench.run.worker", [str(folder / JOB)], log, job.threads) as process,
        ):
            try:
                outcome = _follow(process, on_event, outcome)
            except BaseException:
                process.kill()
                raise
        if outcome.status == "failed" and outcome.error is None:
            outcome.error = _death(process.returncode)
        return outcome


def _follow(process: subprocess.Popen[str], on_event: OnEvent, outcome: Outcome) -> Outcome:
    stream = process.stdout
    if stream is None:  # pragma: no cover - always piped
        return outcome
    for line in stream:
        try:
            event = json.loads(line)
        except ValueError:
            continue
        kind = event.pop("event", None)
        if kind == "result":
            outcome = Outcome("ok", result=event)
        elif kind == "error":
            outcome = Outcome(event.pop("status"), result=event.pop("so_far"), error=event)
        else:
            on_event({"event": kind, **event})
    return outcome


def _death(code: int) -> dict[str, Any]:
    """Describes a worker that ended without a word."""
    if code < 0:
        name = signal.Signals(-code).name if -code in signal.valid_signals() else str(-code)
        message = f"the worker was killed by {name}"
        if name == "SIGKILL":
            message += " (often: out of memory)"
    else:
        message = f"the worker ended with status {code} before it was done"
    return {"type": "WorkerDied", "message": message, "phase": None, "step": None, "plugin": None, "traceback": ""}


def _spawn(module: str, arguments: list[str], log: IO[str], threads: int) -> subprocess.Popen[str]:
    environment = {key: value for key, value in os.environ.items() if key != VARIABLE}
    environment |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}
    environment.setdefault("GLIBC_TUNABLES", ALLOCATOR)
    return subprocess.Popen(  # noqa: S603 - our own interpreter and module
        # -P keeps the current folder off the path: a file there must not stand in for a library.
        [sys.executable, "-P", "-m", module, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        encoding="utf-8",
        env=environment,
    )


class EvaluatorDiedError(DfqError):
    """The evaluator's process ended in the middle of a request."""


class EvaluatorProcess:
    """A running evaluator; started when first asked, and again after it died.

    Args:
        log: file for what it prints.
        threads: CPU threads.
        device: torch device.
    """

    def __init__(self, log: Path, threads: int, device: str) -> None:
        self._log = log
        self._threads = threads
        self._device = device
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
            try:
                process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            self._forget()
            reason = _death(process.returncode)["message"].replace("worker", "evaluator")
            raise EvaluatorDiedError(reason, f"its log is {self._log}") from error

    def start(self) -> None:
        """Starts the process and waits until it is ready.

        Raises:
            UsageError: it cannot work on the device.
        """
        process = self._process or self._launch()
        if not self._ready:
            self._greet(process)

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            if self._process.stdin is not None:
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
            process = _spawn("dfqbench.run.evaluator", [], log, self._threads)
        self._process = process
        self._ready = False
        if process.stdin is not None:
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
