"""The executor `local`: one spawned process a job, on this machine."""

from __future__ import annotations

import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dfqbench.run.execute.cancellation import Stop
from dfqbench.run.execute.evaluator_process import EvaluatorProcess
from dfqbench.run.execute.events import EventError, from_line
from dfqbench.run.execute.executor import EventReader, OnEvent, Slot, all_stopped, stopped_error
from dfqbench.run.execute.job import JOB, Job, Outcome
from dfqbench.run.execute.processes import death, end_group, out_of_memory_kills, spawn

LOG = "log.txt"
GRACE = 30.0
"""Seconds that a worker has to keep its state and end; batch systems give as much."""
STACK_SECONDS = 0.3
"""Time for the stack of a worker that hangs to reach its log."""
STRAY_SECONDS = 2.0
"""How long children of a dead worker may keep its line open."""
LOOK_EVERY = 0.05
ASK_EVERY = 1.0
"""Seconds until a worker is asked to end again: a library in it may have taken the signal. Triton's LLVM does, in a
process that compiled a kernel: it keeps SIGUSR1 for itself, and passes SIGTERM on."""


@dataclass(frozen=True, slots=True)
class Host:
    """What every process of a run is started with.

    Attributes:
        logs: folder for the evaluators' logs.
        threads: CPU threads of a process.
        device: torch device.
        grace: seconds that a worker has to end.
    """

    logs: Path
    threads: int
    device: str
    grace: float = GRACE


class LocalExecutor:
    """One process a job; its environment holds no path of real data.

    Args:
        slots: places for jobs.
        host: what processes are started with.
    """

    in_process = False

    def __init__(self, slots: Sequence[Slot], host: Host) -> None:
        self.slots = slots
        self._host = host
        self._evaluators: dict[int, EvaluatorProcess] = {}

    def run(self, job: Job, slot: Slot, on_event: OnEvent, stop: Stop) -> Outcome:
        """Runs a job in a process of its own and waits for it."""
        folder = Path(job.attempt)
        job = replace(job, shares_gpu=slot.shares_gpu)
        job.write(folder / JOB)
        starved = out_of_memory_kills()
        reader = EventReader(on_event, len(job.partners))
        with (folder / LOG).open("w", encoding="utf-8") as log:
            process = spawn(
                "dfqbench.run.worker.main",
                [str(folder / JOB)],
                log,
                threads=job.threads,
                variables=slot.variables,
                hidden=job.guarded,
            )
        # Leaving the block closes the pipes; a worker ends when its standard input does.
        with process:
            watch = _Watch(process, stop, job.time_limit, self._host.grace)
            try:
                _follow(process, reader, watch)
                process.wait()
            except EventError as error:
                # Sent by plugin code into the worker's own stream; the run goes on with its other cells.
                return Outcome("failed", error=_no_event(error), died=True, partners=reader.members)
            except BaseException:
                process.kill()
                raise
            finally:
                watch.end()
                end_group(process)
        return _ended(process, reader, watch, starved=out_of_memory_kills() > starved)

    def evaluator(self, slot: Slot) -> EvaluatorProcess:
        """The slot's evaluator, started when first asked."""
        if slot.number not in self._evaluators:
            host = self._host
            log = host.logs / ("evaluator.log" if slot.number == 0 else f"evaluator-{slot.number}.log")
            self._evaluators[slot.number] = EvaluatorProcess(log, host.threads, host.device, slot.variables)
        return self._evaluators[slot.number]

    def close(self) -> None:
        """Ends the evaluators."""
        for evaluator in self._evaluators.values():
            evaluator.close()


class _Watch:
    """Asks a worker to stop, and ends it where it does not.

    Attributes:
        reason: `timeout`, `preempted`, or None: nobody asked.
    """

    def __init__(self, process: subprocess.Popen[str], stop: Stop, limit: float, grace: float) -> None:
        self.reason: str | None = None
        self.limit = limit
        self._process = process
        self._stop = stop
        self._grace = grace
        self._over = threading.Event()
        self._heard = threading.Event()
        self._asked_at: float | None = None
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def heard(self) -> None:
        """The worker has sent something: from now on it hears signals, which would have ended it before."""
        self._heard.set()

    def end(self) -> None:
        """The worker has ended."""
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        deadline = time.monotonic() + self.limit if self.limit else float("inf")
        kill_at = stray_at = float("inf")
        while not self._over.wait(LOOK_EVERY):
            now = time.monotonic()
            if self.reason is None and (self._stop.reason is not None or now >= deadline):
                self.reason = "preempted" if self._stop.reason is not None else "timeout"
                kill_at = now + self._grace
            if self.reason is not None and self._heard.is_set():
                self._ask(now)
            if now >= kill_at or (self.reason is not None and self._stop.hurry):
                if self._asked_at is not None:
                    self._process.send_signal(signal.SIGUSR2)
                    self._over.wait(STACK_SECONDS)
                self._process.kill()
                kill_at = float("inf")
            if self._process.poll() is not None:
                stray_at = min(stray_at, now + STRAY_SECONDS)
            if now >= stray_at:
                end_group(self._process)

    def _ask(self, now: float) -> None:
        if self._asked_at is None or now - self._asked_at >= ASK_EVERY:
            self._asked_at = now
            self._process.send_signal(signal.SIGTERM)


def _follow(process: subprocess.Popen[str], reader: EventReader, watch: _Watch) -> None:
    if process.stdout is None:  # pragma: no cover - always piped
        return
    for line in process.stdout:
        try:
            event = from_line(line)
        except (ValueError, RecursionError):
            # Printed before the worker took over its standard output, or cut off by its death.
            continue
        watch.heard()
        reader.send(event)


def _no_event(error: EventError) -> dict[str, Any]:
    return {"type": "EventError", "message": str(error), **dict.fromkeys(("phase", "step", "plugin")), "traceback": ""}


def _ended(process: subprocess.Popen[str], reader: EventReader, watch: _Watch, *, starved: bool) -> Outcome:
    outcome = reader.outcome
    if outcome is not None:
        # Signals that came from elsewhere (a batch system) preempt as ours do.
        return all_stopped(outcome, watch.reason or "preempted", watch.limit)
    partners = reader.members
    if watch.reason is not None:
        error = stopped_error(watch.reason, None, watch.limit)
        others = all_stopped(Outcome("failed", partners=partners), watch.reason, watch.limit).partners
        return Outcome(watch.reason, error=error, died=True, partners=others)
    starved = starved and process.returncode == -signal.SIGKILL
    error = death(process.returncode, starved=starved)
    return Outcome("oom" if starved else "failed", error=error, died=True, partners=partners)
