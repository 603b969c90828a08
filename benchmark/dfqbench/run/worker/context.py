"""The host's side of a cell, as plugins see it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, Protocol, TypeVar

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
from dfqbench.run.plan.identity import derived_seed
from dfqbench.run.store.training_folder import Snapshots, Timeline
from dfqbench.synth.nan_check import READ_EVERY, NonFiniteCheck

REPORT_EVERY = 0.5
"""Seconds between progress reports to the parent."""

Report = Callable[[int, int, dict[str, float]], None]
State = Callable[[], dict[str, Any]]
ForStudent = Callable[[Callable[[], Any]], Any]
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
SharedQuantize = Callable[[nn.Module, SampleSource, "HostContext"], Student]


class Keeper(Protocol):
    """What keeps a phase's state, and says when to stop."""

    @property
    def stopping(self) -> bool:
        """Whether somebody asked the attempt to stop."""
        ...

    def boundary(self, context: HostContext, state: State) -> None:
        """At a step boundary: keeps the state where that is due, and ends the attempt where it shall stop."""
        ...

    def stop(self) -> None:
        """Ends the attempt where no state can be kept."""
        ...


@dataclass(frozen=True, slots=True)
class Restored:
    """What an earlier run of the phase has left.

    Attributes:
        state: the plugin's own state.
        context: what `HostContext.own_state` returned beside it.
        on_read: sets back what is the host's: global random generators and the account.
    """

    state: dict[str, Any]
    context: Mapping[str, Any]
    on_read: Callable[[], None]


class HostContext:
    """Implements `dfqbench.api.Context` for one phase of a cell.

    Attributes:
        device: where to compute.
        card: the teacher's card.
        budget: length of schedules.
        precision: how the training loops compute.
        workdir: the attempt's own folder for the plugin.
        steps: last step that the plugin reported.
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
        report: Report,
        shared_quantize: SharedQuantize | None = None,
        report_every: float = REPORT_EVERY,
        snapshots: Snapshots | None = None,
        timeline: Timeline | None = None,
        keeper: Keeper | None = None,
        restored: Restored | None = None,
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
        self._keeper = keeper
        self._restored = restored
        self._keeps = False
        self._for_student = for_student
        self.generator.manual_seed(self.seed("generator"))

    @property
    def scheme(self) -> Scheme:
        """What is quantized and how; closed to a source that says it does not depend on it."""
        if self._scheme is None:
            raise PluginError(
                "synthesize asked for ctx.scheme although the method says that its source does not depend on bits",
                "set depends_on_bits = True in the method's class",
            )
        return self._scheme

    @property
    def restored(self) -> dict[str, Any] | None:
        """State of a checkpoint; None in a fresh attempt. Reading it also sets the random generators back."""
        if self._restored is None:
            return None
        state = self._restored.context
        self.generator.set_state(state["generator"].cpu())
        self.steps = int(state["steps"])
        if self._timeline is not None:
            self._timeline.reached(self.steps, int(state.get("total", 0)))
        self._nan_check.load_state_dict(state["nan_check"])
        self._restored.on_read()
        return self._restored.state

    def own_state(self) -> dict[str, Any]:
        """What the context itself must remember at a step boundary."""
        return {
            "generator": self.generator.get_state(),
            "steps": self.steps,
            "total": self._total,
            "nan_check": self._nan_check.state_dict(),
        }

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
        """Return a step that may be repeated as a CUDA graph; it runs eagerly on CPUs and on the reference path."""
        return self._make_graphed(step, generators)

    def seed(self, *scope: str | int) -> int:
        """A seed of this phase and scope."""
        return derived_seed(self._seed_key, self._phase, *scope)

    def progress(self, step: int, total: int, **scalars: Any) -> None:
        """Counts steps, notes the first step with a bad loss on the device, and reports now and then."""
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
            # Scalars are read only with the flag, so that passing them costs no synchronisation.
            self._report(step, total, {name: float(value) for name, value in scalars.items()} if reading else {})
        if self._keeper is not None and not self._keeps and step > 1 and self._keeper.stopping:
            # A phase that has come to its second step without offering a state will not offer any.
            self._keeper.stop()

    def snapshot(self, student: nn.Module, step: int) -> None:
        """Keeps the student at up to as many steps as were asked for; drops it where none were."""
        if self._snapshots is not None:
            self._snapshots.offer(student, step, self._total)

    def checkpoint(self, state: State) -> None:
        """Keeps the state now and then, and before an attempt that was asked to stop ends."""
        self._keeps = True
        if self._keeper is not None:
            self._keeper.boundary(self, state)

    def check(self) -> None:
        """Looks at the losses until now, so that no state is kept that has already gone wrong.

        Raises:
            NonFiniteError: one was NaN or infinite.
        """
        self._nan_check.check()

    def for_student(
        self, act: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Result | None:
        """Call a function with the part of a step that belongs to this context's student alone."""
        if self._for_student is None:
            return act(*args, **kwargs)
        result: Result | None = self._for_student(lambda: act(*args, **kwargs))
        return result

    def shared_quantize(self, teacher: nn.Module, source: SampleSource) -> Student:
        """Runs the cell's shared quantizer."""
        if self._shared_quantize is None:
            raise PluginError("synthesize asked for the shared quantizer", "call it in quantize only")
        return self._shared_quantize(teacher, source, self)
