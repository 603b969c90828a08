"""Meters around what plugins are handed: sources whose calls are timed, and counts that do not depend on hardware."""

from __future__ import annotations

from collections.abc import Iterator, Sized
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from dfqbench.api.batch import Batch, LiveSource, SampleSource, is_live

if TYPE_CHECKING:
    from torch import nn

    from dfqbench.run.clock import Clock
    from dfqbench.run.training import Timeline


@dataclass(slots=True)
class Counts:
    """Hardware-neutral cost of an attempt.

    Attributes:
        images: images that sources gave.
        source_steps: steps in which the source learned.
        teacher_images: images that went through the teacher.
        student_images: images that went through the student.
        optimizer_steps: steps of torch optimizers.
    """

    images: int = 0
    source_steps: int = 0
    teacher_images: int = 0
    student_images: int = 0
    optimizer_steps: int = 0

    def as_dict(self) -> dict[str, int]:
        """Plain data for the record."""
        return asdict(self)


@contextmanager
def counting(teacher: nn.Module, counts: Counts) -> Iterator[None]:
    """Counts teacher passes and optimizer steps; no trace is left on the teacher afterwards."""
    from torch.optim.optimizer import register_optimizer_step_post_hook

    def passed(module: nn.Module, args: tuple[Any, ...]) -> None:
        # A copy of the teacher carries the hook along; its passes are not the teacher's.
        if module is teacher and args and hasattr(args[0], "shape"):
            counts.teacher_images += int(args[0].shape[0])

    def stepped(_optimizer: Any, _args: Any, _kwargs: Any) -> None:
        counts.optimizer_steps += 1

    handles = [teacher.register_forward_pre_hook(passed), register_optimizer_step_post_hook(stepped)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class MeteredSource:
    """A source whose calls are charged to synthesis, whoever makes them."""

    def __init__(self, source: SampleSource, clock: Clock, counts: Counts) -> None:
        self._source = source
        self._clock = clock
        self._counts = counts

    def sample(self, size: int) -> Batch:
        """Draws images; the time is synthesis."""
        with self._clock.inside():
            batch = self._source.sample(size)
        self._counts.images += len(batch.images)
        return batch

    def state_dict(self) -> dict[str, Any]:
        """State of the source within."""
        return self._source.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the source within."""
        self._source.load_state_dict(state)


class MeteredImages(MeteredSource):
    """The same for a source that knows how many images it has."""

    def __init__(self, source: SampleSource, size: int, clock: Clock, counts: Counts) -> None:
        super().__init__(source, clock, counts)
        self._size = size

    def __len__(self) -> int:
        return self._size


class MeteredLiveSource(MeteredSource):
    """The same for a source that still learns."""

    def __init__(self, source: LiveSource, clock: Clock, counts: Counts, timeline: Timeline | None = None) -> None:
        super().__init__(source, clock, counts)
        self._live = source
        self._timeline = timeline

    def train_step(self, size: int, student: nn.Module | None = None) -> Batch:
        """Trains the generator once; the time, passes through teacher and student included, is synthesis."""
        with self._clock.inside():
            batch = self._live.train_step(size, student)
        self._counts.images += len(batch.images)
        self._counts.source_steps += 1
        if self._timeline is not None:
            self._timeline.offer(batch)
        return batch


def metered(source: SampleSource, clock: Clock, counts: Counts, timeline: Timeline | None = None) -> MeteredSource:
    """Wraps a source for the clock and the counts; a live one also shows its batches to the timeline."""
    if is_live(source):
        return MeteredLiveSource(source, clock, counts, timeline)
    if isinstance(source, Sized):
        return MeteredImages(source, len(source), clock, counts)
    return MeteredSource(source, clock, counts)
