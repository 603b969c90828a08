"""Widths of layers in mixed precision: planned from the source's images, and kept for an attempt that continues."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from dfqbench.api.batch import SampleSource, has_images, is_live
from dfqbench.api.errors import DfqError, Unavailable
from dfqbench.api.method import Method
from dfqbench.quant.scheme import Scheme
from dfqbench.quantizers.mixed_precision import plan_scheme
from dfqbench.run.execute.job import Job
from dfqbench.run.store.files import write_json
from dfqbench.run.worker.accounting import Accounting
from dfqbench.run.worker.context import HostContext
from dfqbench.run.worker.device_setup import seeded
from dfqbench.run.worker.instrumented_source import InstrumentedLiveSource, SharedCounts

FILE = "bits.json"
"""Name of the file beside the checkpoints."""


@dataclass(frozen=True, slots=True)
class BitPlanning:
    """Planning for one attempt at a cell of mixed precision.

    It leaves no trace in what the quantizer gets: a fixed source is set back, and instead of a live one another
    generator of the same method is trained, alone.
    """

    job: Job
    teacher: nn.Module
    method: Method | None  # None: the real-data control
    accounting: Accounting  # of the attempt
    counts: SharedCounts  # of the worker
    context: HostContext  # of the quantization

    def planned_scheme(self, source: SampleSource) -> Scheme:
        """Return the cell's scheme; one of mixed precision with a width for each layer.

        The widths are those that an earlier process of the cell has kept, or are planned now.

        Args:
            source: the cell's, with its calls timed and counted.

        Raises:
            Unavailable: the source has no images, or the budget cannot be met.
        """
        scheme = self.context.scheme
        if scheme.mixed is None or self.job.probe_seconds:
            return scheme
        with self.accounting.untimed():
            kept = self._read()
        if kept is not None:
            return kept
        before = self.accounting.counts.as_dict()
        with seeded(self.context.seed("mixed precision")):
            images = self._images(source, scheme.mixed.images)
        drawn = {name: count - before[name] for name, count in self.accounting.counts.as_dict().items()}
        self.accounting.planning.set(drawn)
        scheme = plan_scheme(self.teacher, images.to(self.context.device), scheme, self.context.card)
        with self.accounting.untimed():
            self._write(scheme, drawn)
        return scheme

    def _images(self, source: SampleSource, count: int) -> Tensor:
        if not has_images(source):
            raise Unavailable("mixed precision needs images, and this source has none", "name a method that makes some")
        if is_live(source) and self.method is not None:
            return self._trained_generator(self.method).sample(count).images
        state = source.state_dict()
        images = source.sample(count).images
        source.load_state_dict(state)
        return images

    def _trained_generator(self, method: Method) -> SampleSource:
        """Return another live source of the method, trained without a student."""
        source_call, scheme = self.accounting.clock.source_call, self.context.scheme
        alone = dataclasses.replace(
            self.context,
            known_scheme=scheme if method.depends_on_bits else None,
            checkpointer=None,
            timeline=None,
            snapshots=None,
        )
        with source_call():
            made = method.synthesize(self.teacher, alone)
        shape = tuple(self.context.card.input_size)
        source = InstrumentedLiveSource(made, source_call, self.counts, shape)
        for step in range(source.training_steps):
            if self.context.checkpointer is not None:
                self.context.checkpointer.stop_without_state()
            source.train_step(source.batch_size)
            alone.progress(step + 1, source.training_steps)
        return source

    @property
    def _file(self) -> Path | None:
        return Path(self.job.checkpoints) / FILE if self.job.checkpoints else None

    def _write(self, scheme: Scheme, drawn: dict[str, int]) -> None:
        if self._file is not None:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            content = {"environment": self.job.environment, "scheme": scheme.as_dict(), "drawn": drawn}
            write_json(self._file, content)

    def _read(self) -> Scheme | None:
        """Return the scheme of an earlier process, in the same environment."""
        if self._file is None:
            return None
        try:
            content = json.loads(self._file.read_text(encoding="utf-8"))
            scheme, drawn = Scheme.from_dict(content["scheme"]), dict(content["drawn"])
            if content["environment"] != self.job.environment:
                return None
            self.accounting.planning.set(drawn)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, DfqError):
            return None
        # Where the attempt continues from a checkpoint, its counts replace these.
        self.accounting.counts.add(drawn)
        return scheme
