"""The context of one phase of a cell, as plugins see it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from dfqbench.accel import backend
from dfqbench.api.batch import SampleSource
from dfqbench.api.budget import Budget
from dfqbench.api.card import ModelCard
from dfqbench.api.errors import NonFiniteError, PluginError
from dfqbench.api.graphed import EagerStep, GraphedStep, MakeGraphed, StepFunction
from dfqbench.api.precision import Precision
from dfqbench.quant.scheme import Scheme
from dfqbench.quant.student import Student
from dfqbench.run.execute.cancellation import Stopped
from dfqbench.run.plan.identity import derived_seed
from dfqbench.run.store.training_folder import Snapshots, Timeline
from dfqbench.run.worker.checkpointer import Checkpointer, State
from dfqbench.synth.nan_check import READ_EVERY, NonFiniteCheck

REPORT_EVERY = 0.5
"""Seconds between progress reports to the parent."""

ForStudent = Callable[[Callable[[], Any]], Any]
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class HostContext:
    """Implement `dfqbench.api.Context` for one phase of a cell; methods without a docstring are described there.

    Attributes:
        steps: last step that the plugin reported.

    Args:
        phase: the phase; part of every seed.
        scheme: None: the source does not depend on it.
        seed_key: what seeds derive from.
        report: receives step, total steps and scalars.
        shared_quantize: the cell's shared quantizer; None in the synthesis.
        report_every: seconds between reports.
        snapshots: keeps snapshots of the student, if any were requested.
        timeline: keeps images of a live source.
        checkpointer: keeps the plugin's states, and stops the phase when requested.
        make_graphed: makes CUDA graphs of steps.
        for_student: runs the parts of a shared loop that belong to this student.
    """

    def __init__(
        self,
        *,
        phase: str,
        device: torch.device,
        card: ModelCard,
        budget: Budget,
        scheme: Scheme | None,
        seed_key: str,
        workdir: Path,
        report: Callable[[int, int, dict[str, float]], None],
        shared_quantize: Callable[[nn.Module, SampleSource, HostContext], Student] | None = None,
        report_every: float = REPORT_EVERY,
        snapshots: Snapshots | None = None,
        timeline: Timeline | None = None,
        checkpointer: Checkpointer | None = None,
        precision: Precision = Precision.FLOAT32,
        make_graphed: MakeGraphed = EagerStep,
        for_student: ForStudent | None = None,
    ) -> None:
        self.device = device
        self.card = card
        self.budget = budget
        self.precision = precision
        self.workdir = workdir
        self.steps = 0
        self.generator = torch.Generator(device)
        self._phase = phase
        self._scheme = scheme
        self._seed_key = seed_key
        self._report = report
        self._shared_quantize = shared_quantize
        self._nan_check = NonFiniteCheck(f"loss in {phase}", device)
        self._make_graphed = make_graphed if precision.rearranges else EagerStep
        self._last_report = 0.0
        self._report_every = report_every
        self._snapshots = snapshots
        self._timeline = timeline
        self._total = 0
        self._checkpointer = checkpointer
        self._offers_states = False
        self._for_student = for_student
        self.generator.manual_seed(self.seed("generator"))

    @property
    def scheme(self) -> Scheme:
        """The cell's scheme; an error in the synthesis of a source that declares not to depend on it."""
        if self._scheme is None:
            raise PluginError(
                "synthesize asked for ctx.scheme although the method says that its source does not depend on bits",
                "set depends_on_bits = True in the method's class",
            )
        return self._scheme

    @property
    def restored(self) -> dict[str, Any] | None:
        """State that the phase continues from, or None; reading it also restores the random generators."""
        saved = None if self._checkpointer is None else self._checkpointer.restore()
        if saved is None:
            return None
        own = saved["context"]
        self.generator.set_state(own["generator"].cpu())
        self.steps = int(own["steps"])
        if self._timeline is not None:
            self._timeline.reached(self.steps, int(own.get("total", 0)))
        self._nan_check.load_state_dict(own["nan_check"])
        state: dict[str, Any] = saved["plugin"]
        return state

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """Compute convolutions and products inside in bfloat16 where the precision says so."""
        narrow = self.precision.bfloat16
        kernels: AbstractContextManager[object] = nullcontext()
        if narrow and self.device.type == "cuda" and backend.enabled():
            from dfqbench.accel.triton.conv import NarrowConvolutions

            kernels = NarrowConvolutions()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=narrow), kernels:
            yield

    def graphed(self, step: StepFunction, generators: Sequence[torch.Generator] = ()) -> GraphedStep:
        """Return a step that may be repeated as a CUDA graph; it runs eagerly on CPUs and with precision float32."""
        return self._make_graphed(step, generators)

    def seed(self, *scope: str | int) -> int:
        """Return a seed of this phase and scope."""
        return derived_seed(self._seed_key, self._phase, *scope)

    def progress(self, step: int, total: int, **scalars: Any) -> None:
        """Count a step, check its loss on the device, and report from time to time."""
        self.steps, self._total = step, total
        if self._timeline is not None:
            self._timeline.reached(step, total)
        loss = scalars.get("loss")
        if isinstance(loss, Tensor):
            self._nan_check.note(loss.detach(), step)
        elif isinstance(loss, float) and not math.isfinite(loss):
            raise NonFiniteError(f"loss in {self._phase}", step)
        reading = step % READ_EVERY == 0 or step == total
        if reading:
            self._nan_check.check()
        now = time.monotonic()
        if now - self._last_report >= self._report_every or step in {1, total}:
            self._last_report = now
            # Scalars are read only together with the check, so that passing them costs no synchronization.
            self._report(step, total, {name: float(value) for name, value in scalars.items()} if reading else {})
        if self._checkpointer is not None and not self._offers_states and step > 1 and self._checkpointer.stopping:
            # A phase that offered no state until its second step will not offer any.
            raise Stopped(kept=False)

    def snapshot(self, student: nn.Module, step: int) -> None:
        """Keep the student, at up to as many steps as were requested."""
        if self._snapshots is not None:
            self._snapshots.offer(student, step, self._total)

    def checkpoint(self, state: State) -> None:
        """Save the state from time to time, and before an attempt ends on request."""
        self._offers_states = True
        if self._checkpointer is not None:
            self._checkpointer.boundary(lambda: self._saved_state(state))

    def _saved_state(self, state: State) -> dict[str, Any]:
        # No state is saved after a loss that was not finite.
        self._nan_check.check()
        plugin = state()
        own = {
            "generator": self.generator.get_state(),
            "steps": self.steps,
            "total": self._total,
            "nan_check": self._nan_check.state_dict(),
        }
        return {"plugin": plugin, "context": own}

    def for_student(
        self, act: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Result | None:
        """Call a function with the part of a step that belongs to this context's student alone."""
        if self._for_student is None:
            return act(*args, **kwargs)
        result: Result | None = self._for_student(lambda: act(*args, **kwargs))
        return result

    def shared_quantize(self, teacher: nn.Module, source: SampleSource) -> Student:
        """Run the cell's shared quantizer."""
        if self._shared_quantize is None:
            raise PluginError("synthesize asked for the shared quantizer", "call it in quantize only")
        return self._shared_quantize(teacher, source, self)
