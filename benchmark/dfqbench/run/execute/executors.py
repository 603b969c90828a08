"""The executors `local` (one process a job) and `inline` (this process), and the slots of this machine."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dfqbench.isolation import kept_folder
from dfqbench.run.execute.cancellation import Cancellation, StopFlag
from dfqbench.run.execute.events import EventError, from_line
from dfqbench.run.execute.job import JOB, EventReader, Job, OnEvent, OnProgress, Outcome, Slot, stopped_error
from dfqbench.run.execute.processes import (
    LOG_BYTES,
    EvaluatorProcess,
    death,
    end_group,
    out_of_memory_kills,
    spawn,
)
from dfqbench.run.store.environment import VISIBLE, Machine
from dfqbench.run.store.files import shorten_file
from dfqbench.run.store.status import CPU_SHARED, GPU_SHARED

if TYPE_CHECKING:
    from dfqbench.run.store.record import Record

LOG = "log.txt"
GRACE = 25.0
"""Seconds that a worker has to keep its state and end; SLURM kills after 30."""
STACK_SECONDS = 0.3
"""Time for the stack of a worker that hangs to reach its log."""
STRAY_SECONDS = 2.0
"""How long children of a dead worker may keep its output open."""
POLL = 0.05
SIGNAL_EVERY = 1.0
"""Seconds until a worker is signalled again: a library in it may have taken the signal. Triton's LLVM does, in a
process that compiled a kernel: it keeps SIGUSR1 for itself, and passes SIGTERM on."""
INLINE = "inline"
"""Flag of records of plugin code that ran in the host's own process."""
UNCONFINED = "unconfined"
"""Flag of records of plugin code that was not confined, on request."""
UNKNOWN_MIB = 1500.0
"""Memory of a job without earlier records: torch with a small network, worker and evaluator together."""
HOST_MIB = 600.0
"""Memory of an evaluator beside a worker whose peak is known."""
UNKNOWN_GPU_MIB = 4000.0
"""GPU memory of a job without earlier records: CUDA graphs of a CIFAR network, worker and evaluator."""
CONTEXTS_MIB, RESERVED = 2000.0, 4.0
"""GPU memory of worker and evaluator before any tensor, and how many times its tensors' peak a worker reserves."""


class LocalExecutor:
    """Runs each job in a process of its own, whose environment variables hold no path of real data.

    Args:
        slots: places for jobs.
        logs: folder for the evaluators' logs.
        threads: CPU threads of an evaluator.
        device: torch device of the evaluators.
        grace: seconds that a worker has to keep its state and end.
        confined: whether plugin code is confined to what it needs, where the kernel can.
    """

    in_process = False

    def __init__(
        self,
        slots: Sequence[Slot],
        logs: Path,
        threads: int,
        device: str,
        grace: float = GRACE,
        *,
        confined: bool = True,
    ) -> None:
        self.slots = slots
        self._logs = logs
        self._threads = threads
        self._device = device
        self._grace = grace
        self._confined = confined
        self._evaluators: dict[int, EvaluatorProcess] = {}

    def run(self, job: Job, slot: Slot, on_event: OnEvent, cancellation: Cancellation) -> Outcome:
        """Run a job in a process and wait for it."""
        folder = Path(job.attempt)
        job = replace(job, shared_flag=slot.shared_flag, confined=self._confined)
        # Plugin code of a job beside this one may have removed it.
        folder.mkdir(parents=True, exist_ok=True)
        job.write(folder / JOB)
        kills = out_of_memory_kills()
        reader = EventReader(on_event, len(job.members))
        scratch = tempfile.TemporaryDirectory(prefix="dfqbench-", ignore_cleanup_errors=True)
        variables = {**slot.variables, "TMPDIR": scratch.name}
        with (folder / LOG).open("w", encoding="utf-8") as log:
            module, arguments = "dfqbench.run.worker.main", [str(folder / JOB)]
            process = spawn(module, arguments, log, threads=job.threads, variables=variables, hidden=job.guarded)
        # Leaving the block closes the pipes; a worker ends when its standard input does.
        with scratch, process:
            watchdog = _Watchdog(process, cancellation, job.time_limit, self._grace)
            try:
                _read_events(process, reader, watchdog)
                process.wait()
            except EventError as error:
                # Sent by plugin code into the worker's own stream; the run goes on with its other cells.
                description = dict.fromkeys(("phase", "step", "plugin")) | {"message": str(error), "traceback": ""}
                return Outcome("failed", error={"type": "EventError"} | description, died=True, members=reader.members)
            except BaseException:
                process.kill()
                raise
            finally:
                watchdog.end()
                end_group(process)
                shorten_file(folder / LOG, LOG_BYTES)
        outcome = _outcome(process, reader, watchdog, out_of_memory=out_of_memory_kills() > kills)
        return outcome if self._confined else _flagged(outcome, UNCONFINED)

    def evaluator(self, slot: Slot) -> EvaluatorProcess:
        """Return the slot's evaluator."""
        if slot.number not in self._evaluators:
            # Runs on several machines may work on one folder.
            log = self._logs / f"evaluator-{platform.node()}-{os.getpid()}-{slot.number}.log"
            self._evaluators[slot.number] = EvaluatorProcess(log, self._threads, self._device, slot.variables)
        return self._evaluators[slot.number]

    def close(self) -> None:
        """End the evaluators."""
        for evaluator in self._evaluators.values():
            evaluator.close()


class _Watchdog:
    """A thread that signals a worker to stop, and kills it where it does not.

    Attributes:
        reason: `timeout`, `preempted`, or None: the worker was not signalled.
        handles_signals: set with the worker's first event; a signal before that would end it without a report.
    """

    def __init__(self, process: subprocess.Popen[str], cancellation: Cancellation, limit: float, grace: float) -> None:
        self.reason: str | None = None
        self.limit = limit
        self.handles_signals = threading.Event()
        self._process = process
        self._cancellation = cancellation
        self._grace = grace
        self._ended = threading.Event()
        self._signalled_at = -float("inf")
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Stop watching: the worker has ended."""
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        deadline = time.monotonic() + self.limit if self.limit else float("inf")
        kill_at = stray_at = float("inf")
        while not self._ended.wait(POLL):
            now = time.monotonic()
            cancelled = self._cancellation.reason is not None
            if self.reason is None and (cancelled or now >= deadline):
                self.reason = "preempted" if cancelled else "timeout"
                kill_at = now + self._grace
            if self.reason and self.handles_signals.is_set() and now - self._signalled_at >= SIGNAL_EVERY:
                self._signalled_at = now
                self._process.send_signal(signal.SIGTERM)
            if now >= kill_at or (self.reason and self._cancellation.hurry):
                if self.handles_signals.is_set():
                    self._process.send_signal(signal.SIGUSR2)
                    self._ended.wait(STACK_SECONDS)
                self._process.kill()
                kill_at = float("inf")
            if self._process.poll() is not None:
                stray_at = min(stray_at, now + STRAY_SECONDS)
            if now >= stray_at:
                end_group(self._process)


def _read_events(process: subprocess.Popen[str], reader: EventReader, watchdog: _Watchdog) -> None:
    for line in process.stdout or ():
        try:
            event = from_line(line)
        except (ValueError, RecursionError):
            # Printed before the worker took over its standard output, or cut off by its death.
            continue
        watchdog.handles_signals.set()
        reader.send(event)


def _outcome(
    process: subprocess.Popen[str], reader: EventReader, watchdog: _Watchdog, *, out_of_memory: bool
) -> Outcome:
    # A signal from elsewhere (a batch system) preempts as well.
    reason, limit = watchdog.reason or "preempted", watchdog.limit
    if reader.outcome is not None:
        return reader.outcome.described(reason, limit)
    members = Outcome("failed", members=reader.members).described(reason, limit).members
    if watchdog.reason is not None:
        return Outcome(reason, error=stopped_error(reason, None, limit), died=True, members=members)
    out_of_memory = out_of_memory and process.returncode == -signal.SIGKILL
    error = death(process.returncode, out_of_memory=out_of_memory)
    return Outcome("oom" if out_of_memory else "failed", error=error, died=True, members=members)


def _flagged(outcome: Outcome, flag: str) -> Outcome:
    for ended in (outcome, *outcome.members):
        if ended is not None and ended.status == "ok":
            ended.result = {**ended.result, "flags": [*ended.result["flags"], flag]}
    return outcome


class InlineExecutor:
    """Runs everything in this process, for a debugger. Nothing is isolated; its records say so."""

    in_process = True

    def __init__(self, threads: int, device: str) -> None:
        self.slots: Sequence[Slot] = (Slot(0),)
        self._threads = threads
        self._device = device
        self._evaluator: _InlineEvaluator | None = None
        self._settings: ExitStack | None = None

    def run(self, job: Job, slot: Slot, on_event: OnEvent, cancellation: Cancellation) -> Outcome:  # noqa: ARG002
        """Run a job in this process."""
        from dfqbench.run.worker.shared_job import run_job

        self._save_settings()
        job.write(Path(job.attempt) / JOB)
        reader = EventReader(on_event, len(job.members))
        with kept_folder():
            run_job(job, reader, _InlineStopFlag(cancellation, job.time_limit))
        outcome = reader.outcome or Outcome("failed", error={"type": "NoResult", "message": "the job did not end"})
        reason = "timeout" if cancellation.reason is None else "preempted"
        return _flagged(outcome, INLINE).described(reason, job.time_limit)

    def evaluator(self, slot: Slot) -> _InlineEvaluator:  # noqa: ARG002 - there is one slot
        """Return the evaluator in this process."""
        self._save_settings()
        if self._evaluator is None:
            self._evaluator = _InlineEvaluator(self._threads, self._device)
        return self._evaluator

    def close(self) -> None:
        """Restore the process's number of threads, kernels and float32 precision."""
        if self._settings is not None:
            self._settings.close()
            self._settings = None

    def _save_settings(self) -> None:
        if self._settings is None:
            import torch

            from dfqbench.accel import using_kernels

            self._settings = ExitStack()
            self._settings.enter_context(using_kernels(self._device))
            self._settings.callback(torch.set_num_threads, torch.get_num_threads())
            for part in (torch.backends.cudnn, torch.backends.cuda.matmul):
                self._settings.callback(setattr, part, "allow_tf32", part.allow_tf32)


class _InlineStopFlag(StopFlag):
    """Reads the run's cancellation and the clock."""

    def __init__(self, cancellation: Cancellation, limit: float) -> None:
        self._cancellation = cancellation
        self._deadline = time.monotonic() + limit if limit else float("inf")

    @property
    def requested(self) -> bool:  # type: ignore[override]
        return self._cancellation.reason is not None or time.monotonic() >= self._deadline


class _InlineEvaluator:
    def __init__(self, threads: int, device: str) -> None:
        from dfqbench.run.evaluate.evaluator import Evaluator

        self._evaluator = Evaluator(threads, device)

    def ask(
        self,
        request: Mapping[str, Any],
        limit: float = 0.0,  # noqa: ARG002 - see the protocol
        on_progress: OnProgress | None = None,
    ) -> dict[str, Any]:
        self._evaluator.on_progress = on_progress
        return self._evaluator.answer(dict(request))

    def kill(self) -> None:
        """Do nothing: the evaluator runs in the calling thread."""


def memory_need(records: Sequence[Record], device: str) -> tuple[float, float]:
    """Return the MiB of a job on the machine and on a GPU, according to earlier records; a guess without any."""
    peak = max((record.peak_mib.largest for record in records if record.device == device), default=0.0)
    host = UNKNOWN_MIB if device.startswith("cuda") else max(UNKNOWN_MIB, peak + HOST_MIB)
    return host, max(UNKNOWN_GPU_MIB, CONTEXTS_MIB + RESERVED * peak)


def plan_slots(
    device: str, jobs: int | None, threads: int, need: tuple[float, float], machine: Machine, *, cells: int
) -> tuple[list[Slot], str]:
    """Choose the slots of a run.

    Args:
        device: torch device; `cuda` uses every GPU of the first one's product, `cuda:N` that one.
        jobs: requested jobs at once, several on a GPU where they fit; None: one for each GPU, on the CPU as many as
            its cores allow.
        threads: CPU threads of a job.
        need: `memory_need` of a job.
        machine: its resources.
        cells: cells to run; no more jobs than that.

    Returns:
        The slots, and a line about what kept them fewer than requested; empty where nothing did.
    """
    host_mib, gpu_mib = need
    on_gpu = device.startswith("cuda")
    # GPUs of another product would be another environment.
    alike = [number for number, (_, product) in enumerate(machine.gpus) if product == machine.gpus[0][1]]
    index = device.partition(":")[2]
    used = [int(index)] if index else alike
    free = min((machine.gpu_mib[number] for number in used if number < len(machine.gpu_mib)), default=0.0)
    cards = [machine.gpus[number][0] for number in alike] if device == "cuda" else []
    places = max(1, len(cards))
    requested = min(jobs or (places if on_gpu else max(1, machine.cores // threads)), max(1, cells))
    on_each = max(1, int(free // gpu_mib)) if on_gpu else requested
    limits = {
        f"{places} GPU{'s' if places > 1 else ''} with {free / 1024:.1f} GiB of free memory for about "
        f"{gpu_mib / 1024:.1f} each": on_each * places,
        f"{machine.cores} cores for {threads} threads each": machine.cores // threads,
        f"{machine.memory_mib / 1024:.1f} GiB of free memory for about {host_mib / 1024:.1f} each": int(
            machine.memory_mib // host_mib
        ),
    }
    count = max(1, min(requested, *limits.values()))
    shared = GPU_SHARED if on_gpu else CPU_SHARED
    slots = [
        Slot(
            number,
            {VISIBLE: cards[number % places]} if len(cards) > 1 else {},
            shared_flag=shared if number >= places or number + places < count else "",
        )
        for number in range(count)
    ]
    if count == requested:
        return slots, ""
    why = min(limits, key=lambda name: limits[name])
    return slots, f"{count} job{'s' if count > 1 else ''} at once instead of {requested}: {why}"
