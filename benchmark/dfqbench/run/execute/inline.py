"""The executor `inline`: everything in this process, for a debugger. Nothing is isolated; its records say so."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from dfqbench.run.execute.cancellation import Stop, StopFlag
from dfqbench.run.execute.executor import EvaluatorClient, EventReader, OnEvent, Slot, all_stopped
from dfqbench.run.execute.job import JOB, Job, Outcome

FLAG = "inline"
"""Marks records of plugin code that ran in the host's own process."""


class InlineExecutor:
    """Runs a job where it stands."""

    in_process = True

    def __init__(self, threads: int, device: str) -> None:
        self.slots: Sequence[Slot] = (Slot(0),)
        self._threads = threads
        self._device = device
        self._evaluator: _InlineEvaluator | None = None
        self._before: ExitStack | None = None

    def run(self, job: Job, slot: Slot, on_event: OnEvent, stop: Stop) -> Outcome:  # noqa: ARG002 - there is one slot
        """Runs a job in this process."""
        from dfqbench.run.worker.shared_job import run_job

        self._remember()
        job.write(Path(job.attempt) / JOB)
        reader = EventReader(on_event, len(job.partners))
        flag = _Flag(stop, job.time_limit)
        run_job(job, reader, flag)
        outcome = reader.outcome or Outcome("failed", error={"type": "NoResult", "message": "the job did not end"})
        for one in (outcome, *outcome.partners):
            if one is not None and one.status == "ok":
                one.result = {**one.result, "flags": [*one.result["flags"], FLAG]}
        return all_stopped(outcome, "preempted" if stop.reason is not None else "timeout", job.time_limit)

    def evaluator(self, slot: Slot) -> EvaluatorClient:  # noqa: ARG002 - there is one slot
        """The evaluator in this process."""
        self._remember()
        if self._evaluator is None:
            self._evaluator = _InlineEvaluator(self._threads, self._device)
        return self._evaluator

    def close(self) -> None:
        """Leaves the process as it was: its number of threads and its float32."""
        before, self._before = self._before, None
        if before is not None:
            before.close()

    def _remember(self) -> None:
        if self._before is None:
            import torch

            from dfqbench.accel import using_kernels

            self._before = ExitStack()
            self._before.enter_context(using_kernels(self._device))
            self._before.callback(torch.set_num_threads, torch.get_num_threads())
            for part in (torch.backends.cudnn, torch.backends.cuda.matmul):
                self._before.callback(setattr, part, "allow_tf32", part.allow_tf32)


class _Flag(StopFlag):
    """Looks at the run's own stop, and at the clock."""

    def __init__(self, stop: Stop, limit: float) -> None:
        self._stop = stop
        self._deadline = time.monotonic() + limit if limit else float("inf")

    @property
    def requested(self) -> bool:  # type: ignore[override]
        return self._stop.reason is not None or time.monotonic() >= self._deadline


class _InlineEvaluator:
    def __init__(self, threads: int, device: str) -> None:
        from dfqbench.run.evaluate.evaluator import Evaluator

        self._evaluator = Evaluator(threads, device)

    def ask(self, request: Mapping[str, Any], limit: float = 0.0) -> dict[str, Any]:  # noqa: ARG002 - see the protocol
        return self._evaluator.answer(dict(request))

    def kill(self) -> None:
        """Nothing can be ended here."""

    def close(self) -> None:
        """Nothing to end."""
