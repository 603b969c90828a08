"""The host's side of a cell, as plugins see it."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dfqbench.api.batch import SampleSource
from dfqbench.api.budget import Budget
from dfqbench.api.card import ModelCard
from dfqbench.api.errors import NonFiniteError, PluginError
from dfqbench.api.precision import Precision
from dfqbench.quant.scheme import Scheme
from dfqbench.quant.student import Student
from dfqbench.run.identity import derived_seed

READ_EVERY = 50
"""Steps between readings of device scalars."""
REPORT_EVERY = 0.5
"""Seconds between progress reports to the parent."""

Report = Callable[[int, int, dict[str, float]], None]
SharedQuantize = Callable[[nn.Module, SampleSource, "HostContext"], Student]


class HostContext:
    """Implements `dfqbench.api.Context` for one phase of a cell.

    Attributes:
        device: where to compute.
        card: the teacher's card.
        budget: length of schedules.
        precision: how the training loops compute.
        workdir: the attempt's own folder for the plugin.
        restored: state of a checkpoint; None in a fresh attempt.
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
        precision: Precision = Precision.FLOAT32,
    ) -> None:
        self.device = device
        self.card = card
        self.budget = budget
        self.precision = precision
        self.workdir = workdir
        self.restored: dict[str, Any] | None = None
        self.steps = 0
        self.generator = torch.Generator(device)
        self._phase = phase
        self._scheme = scheme
        self._seed_key = seed_key
        self._report = report
        self._shared_quantize = shared_quantize
        self._first_bad: Tensor | None = None
        self._last_report = 0.0
        self._report_every = report_every
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

    def autocast(self) -> AbstractContextManager[Any]:
        """Convolutions in bfloat16 where the precision says so."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision.bfloat16)

    def seed(self, *scope: str | int) -> int:
        """A seed of this phase and scope."""
        return derived_seed(self._seed_key, self._phase, *scope)

    def progress(self, step: int, total: int, **scalars: Any) -> None:
        """Counts steps, notes the first step with a bad loss on the device, and reports now and then."""
        self.steps = step
        loss = scalars.get("loss")
        if isinstance(loss, Tensor):
            self._watch(loss.detach(), step)
        elif isinstance(loss, float) and not torch.isfinite(torch.tensor(loss)):
            raise NonFiniteError(f"loss in {self._phase}", step)
        reading = step % READ_EVERY == 0 or step == total
        if reading:
            self._check(step)
        now = time.monotonic()
        if now - self._last_report >= self._report_every or step in {1, total}:
            self._last_report = now
            # Scalars are read only with the flag, so that passing them costs no synchronisation.
            self._report(step, total, {name: float(value) for name, value in scalars.items()} if reading else {})

    def _watch(self, loss: Tensor, step: int) -> None:
        if self._first_bad is None:
            self._first_bad = torch.zeros((), dtype=torch.int64, device=loss.device)
        seen_or_fine = (self._first_bad > 0) | torch.isfinite(loss).all()
        self._first_bad = torch.where(seen_or_fine, self._first_bad, step)

    def _check(self, step: int) -> None:
        if self._first_bad is not None:
            bad = int(self._first_bad)
            if bad:
                raise NonFiniteError(f"loss in {self._phase}", min(bad, step))

    def snapshot(self, student: nn.Module, step: int) -> None:
        """Accepted and dropped: evaluation of snapshots was not asked for."""

    def checkpoint(self, state: Callable[[], dict[str, Any]]) -> None:
        """Accepted and dropped: attempts start afresh."""

    def shared_quantize(self, teacher: nn.Module, source: SampleSource) -> Student:
        """Runs the cell's shared quantizer."""
        if self._shared_quantize is None:
            raise PluginError("synthesize asked for the shared quantizer", "call it in quantize only")
        return self._shared_quantize(teacher, source, self)
