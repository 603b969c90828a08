"""The context of one phase of a cell, as plugins see it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
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
from dfqbench.quant.student import Student, prepare
from dfqbench.run.plan.identity import derived_seed
from dfqbench.run.store.training_folder import Snapshots, Timeline
from dfqbench.run.worker.checkpointer import Checkpointer, State
from dfqbench.synth.nan_check import READ_EVERY, NonFiniteCheck

REPORT_EVERY = 0.5
"""Seconds between progress reports to the parent."""

RunPart = Callable[[Callable[[], Any]], Any]
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


@dataclass(kw_only=True, eq=False)
class HostContext:
    """Implement `dfqbench.api.Context` for one phase of a cell.

    Attributes:
        phase: part of every seed.
        known_scheme: the cell's scheme; None: the source declares that it does not depend on it.
        report: receives step, number of steps and scalars; `report_every` is the least number of seconds in between.
        quantize: the cell's shared quantizer; None in the synthesis.
        run_part: run the part of a shared loop's step that belongs to this student.
        steps: last step that the plugin reported.
    """

    phase: str
    device: torch.device
    card: ModelCard
    budget: Budget
    known_scheme: Scheme | None
    seed_key: str
    workdir: Path
    report: Callable[[int, int, dict[str, float]], None]
    report_every: float = REPORT_EVERY
    quantize: Callable[[nn.Module, SampleSource, HostContext], Student] | None = None
    snapshots: Snapshots | None = None
    timeline: Timeline | None = None
    checkpointer: Checkpointer | None = None
    precision: Precision = Precision.FLOAT32
    make_graphed: MakeGraphed = EagerStep
    run_part: RunPart | None = None
    steps: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.generator = torch.Generator(self.device)
        self.generator.manual_seed(self.seed("generator"))
        self._nan_check = NonFiniteCheck(f"loss in {self.phase}", self.device)
        self._last_report = self._last_scalars = 0.0
        self._total = 0
        self._offers_states = False

    @property
    def scheme(self) -> Scheme:
        """The cell's scheme; an error in the synthesis of a source that declares not to depend on it."""
        if self.known_scheme is None:
            raise PluginError(
                "synthesize asked for ctx.scheme although the method says that its source does not depend on bits",
                "set depends_on_bits = True in the method's class",
            )
        return self.known_scheme

    @property
    def restored(self) -> dict[str, Any] | None:
        """State that the phase continues from, or None; reading it also restores the random generators."""
        saved = None if self.checkpointer is None else self.checkpointer.restore()
        if saved is None:
            return None
        own = saved["context"]
        self.generator.set_state(own["generator"].cpu())
        self.steps = int(own["steps"])
        if self.timeline is not None:
            self.timeline.reached(self.steps, int(own.get("total", 0)))
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
        make = self.make_graphed if self.precision.rearranges else EagerStep
        return make(step, generators)

    def seed(self, *scope: str | int) -> int:
        """Return a seed of this phase and scope."""
        return derived_seed(self.seed_key, self.phase, *scope)

    def progress(self, step: int, total: int, **scalars: Any) -> None:
        """Count a step, check its loss on the device, and report from time to time."""
        self.steps, self._total = step, total
        if self.timeline is not None:
            self.timeline.reached(step, total)
        loss = scalars.get("loss")
        if isinstance(loss, Tensor):
            self._nan_check.note(loss.detach(), step)
        elif isinstance(loss, float) and not math.isfinite(loss):
            raise NonFiniteError(f"loss in {self.phase}", step)
        reading = step % READ_EVERY == 0 or step == total
        if reading:
            self._nan_check.check()
        now = time.monotonic()
        # Reports with scalars are rarer, and do not wait for a step that is both due and a step of the check.
        last = self._last_scalars if reading else self._last_report
        if now - last >= self.report_every or step in {1, total}:
            self._last_report = now
            self._last_scalars = now if reading else self._last_scalars
            # Scalars are read only together with the check, so that passing them costs no synchronization.
            self.report(step, total, {name: float(value) for name, value in scalars.items()} if reading else {})
        if self.checkpointer is not None and not self._offers_states and step > 1:
            # A phase that offered no state until its second step will not offer any.
            self.checkpointer.stop_without_state()

    def snapshot(self, student: nn.Module, step: int) -> None:
        """Keep the student, at up to as many steps as were requested."""
        if self.snapshots is not None:
            self.snapshots.offer(student, step, self._total)

    def checkpoint(self, state: State) -> None:
        """Save the state from time to time, and before an attempt ends on request."""
        self._offers_states = True
        if self.checkpointer is not None:
            self.checkpointer.boundary(lambda: self._saved_state(state))

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
        if self.run_part is None:
            return act(*args, **kwargs)
        result: Result | None = self.run_part(lambda: act(*args, **kwargs))
        return result

    def prepare(self, teacher: nn.Module) -> Student:
        """Return a student of the teacher under the cell's scheme."""
        return prepare(teacher, self.scheme, self.card)

    def shared_quantize(self, teacher: nn.Module, source: SampleSource) -> Student:
        """Run the cell's shared quantizer."""
        if self.quantize is None:
            raise PluginError("synthesize asked for the shared quantizer", "call it in quantize only")
        return self.quantize(teacher, source, self)
