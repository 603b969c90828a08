"""Processes of a run on this machine: spawning them, their deaths, and the evaluator's process."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any, NoReturn

from dfqbench.api.errors import UsageError
from dfqbench.run.execute.job import EvaluationTimeoutError, EvaluatorDiedError, OnProgress
from dfqbench.run.store.files import set_aside, shorten_file
from dfqbench.targets.folders import VARIABLE

KEPT_VARIABLES = frozenset({"PATH", "HOME", "PYTHONPATH", "LD_LIBRARY_PATH", "TMPDIR", "VIRTUAL_ENV", "LANG"})
"""Variables that a process cannot do without, even if they name real data."""
LOG_BYTES = 2**20
"""Size of a process's log that is kept, head and tail; it is shortened when the process has ended."""
ALLOCATOR = (
    "glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=8589934592:glibc.malloc.hugetlb=1"
    ":glibc.malloc.arena_max=1"
)
"""Settings of glibc: the process keeps the memory of large tensors between steps (8 % of a step of GDFQ on one core)
in one arena for all threads (three students of GDFQ on CIFAR-10 in one loop: 1,372 MiB instead of 1,924)."""


def spawn(
    module: str,
    arguments: list[str],
    log: IO[str],
    *,
    threads: int,
    variables: Mapping[str, str] | None = None,
    hidden: Iterable[str] = (),
) -> subprocess.Popen[str]:
    """Start one of dfqbench's modules in a process and session of its own, which Ctrl-C does not reach.

    Args:
        module: dotted name.
        arguments: its arguments.
        log: where it prints.
        threads: CPU threads of the libraries.
        variables: environment variables to set.
        hidden: paths of real data; no variable of the process holds one of them.
    """
    environment = clean_environment(os.environ, hidden)
    environment |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}
    environment |= variables or {}
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
        start_new_session=True,
    )


def clean_environment(variables: Mapping[str, str], hidden: Iterable[str]) -> dict[str, str]:
    """Return environment variables without those that name data folders, or hold one of the hidden paths."""
    paths = [form for path in hidden if len(form := path.rstrip(os.sep)) > 1]
    return {
        name: value
        for name, value in variables.items()
        if name != VARIABLE and (name in KEPT_VARIABLES or not any(path in value for path in paths))
    }


def end_group(process: subprocess.Popen[str]) -> None:
    """Kill a process and the children that a plugin started in it."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def out_of_memory_kills() -> int:
    """Return how often this machine's kernel has killed for want of memory; 0 where that is not known."""
    try:
        for line in Path("/proc/vmstat").read_text(encoding="ascii").splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    except (OSError, ValueError):
        pass
    return 0


def death(code: int, process: str = "worker", *, out_of_memory: bool = False) -> dict[str, Any]:
    """Describe a process that ended without a report; `out_of_memory`: the kernel has killed for want of memory."""
    if code < 0:
        name = signal.Signals(-code).name if -code in signal.valid_signals() else str(-code)
        message = f"the {process} was killed by {name}"
        if name == "SIGKILL":
            message += ": the machine ran out of memory" if out_of_memory else " (often: out of memory)"
    else:
        message = f"the {process} ended with status {code} before it was done"
    return {"type": "WorkerDied", "message": message, "phase": None, "step": None, "plugin": None, "traceback": ""}


class EvaluatorProcess:
    """An evaluator in a process of its own, which prints to a log; started with the first request and after it died."""

    def __init__(self, log: Path, threads: int, device: str, variables: Mapping[str, str] | None = None) -> None:
        self._log = log
        self._threads = threads
        self._device = device
        self._variables = variables
        self._process: subprocess.Popen[str] | None = None
        self._ready = False

    def ask(
        self, request: Mapping[str, Any], limit: float = 0.0, on_progress: OnProgress | None = None
    ) -> dict[str, Any]:
        """Send a request and wait for the answer (`EvaluatorClient.ask`); the start of the process counts as well.

        Raises:
            UsageError: it cannot work on the device.
        """
        process = self._process or self._launch()
        late = threading.Event()

        def give_up() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(limit, give_up)
        if limit:
            timer.start()
        try:
            self._wait_until_ready(process)
            _send(process, request)
            while "progress" in (answer := _receive(process)):
                if on_progress is not None:
                    on_progress(*answer["progress"])
        except (OSError, ValueError) as error:
            if late.is_set():
                self._end(process)
                hint = "give it more with --evaluation-limit, or look whether the evaluation set can be read"
                raise EvaluationTimeoutError(f"the evaluation's time limit of {limit:g} s was reached", hint) from error
            self._report_death(process, error)
        finally:
            timer.cancel()
        if late.is_set():
            # The answer came at the last moment; the next request needs another process.
            self._end(process)
        return answer

    def start(self) -> None:
        """Start the process and wait until it is ready; raises as `ask`."""
        process = self._process or self._launch()
        try:
            self._wait_until_ready(process)
        except (OSError, ValueError) as error:
            self._report_death(process, error)

    def kill(self) -> None:
        """End the process at once; called from another thread than `ask`."""
        process = self._process
        if process is not None:
            process.kill()

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            with contextlib.suppress(OSError):
                if self._process.stdin is not None:
                    self._process.stdin.close()
            self._end(self._process)
        with contextlib.suppress(OSError):
            if self._log.stat().st_size == 0:
                self._log.unlink()

    def _launch(self) -> subprocess.Popen[str]:
        self._log.parent.mkdir(parents=True, exist_ok=True)
        if self._log.is_symlink() or not self._log.is_file():
            set_aside(self._log)
        with self._log.open("a", encoding="utf-8") as log:
            module = "dfqbench.run.evaluate.evaluator"
            process = spawn(module, [], log, threads=self._threads, variables=self._variables)
        self._process, self._ready = process, False
        # A process that is dead already is noticed when its answer is read.
        with contextlib.suppress(OSError):
            _send(process, {"threads": self._threads, "device": self._device})
        return process

    def _wait_until_ready(self, process: subprocess.Popen[str]) -> None:
        if self._ready:
            return
        hello = _receive(process)
        if "error" in hello:
            self._end(process)
            raise UsageError(hello["error"]["message"])
        self._ready = True

    def _report_death(self, process: subprocess.Popen[str], error: Exception) -> NoReturn:
        self._end(process)
        message = death(process.returncode, "evaluator")["message"]
        raise EvaluatorDiedError(message, f"its log is {self._log}") from error

    def _end(self, process: subprocess.Popen[str]) -> None:
        """Wait for a process that is about to end, and kill it where it does not."""
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._process = None
        shorten_file(self._log, LOG_BYTES)
        for stream in (process.stdin, process.stdout):
            # The pipe of a dead process may not take what is still buffered.
            with contextlib.suppress(OSError):
                if stream is not None:
                    stream.close()


def _send(process: subprocess.Popen[str], request: Mapping[str, Any]) -> None:
    if process.stdin is not None:
        process.stdin.write(json.dumps(dict(request)) + "\n")
        process.stdin.flush()


def _receive(process: subprocess.Popen[str]) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(process.stdout.readline() if process.stdout is not None else "")
    return answer
