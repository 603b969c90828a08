"""Meters around what plugins are handed: sources whose calls are timed, and counts that do not depend on hardware."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol

from dfqbench.api.batch import Batch, LiveSource, SampleSource, is_live
from dfqbench.api.errors import NonFiniteError, PluginError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dfqbench.accel.cuda_graph import Counters
    from dfqbench.run.store.training_folder import Timeline

    Timelines = Callable[[], Iterable[Timeline]]


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

    def take(self, found: Mapping[str, int]) -> None:
        """Sets counts, by name."""
        for name, count in found.items():
            setattr(self, name, count)

    def add(self, more: Mapping[str, int]) -> None:
        """Raises counts, by name."""
        self.take({name: getattr(self, name) + count for name, count in more.items()})


class SharedCounts:
    """Counts of the attempts for which work is done now.

    Attributes:
        present: their counts.
    """

    def __init__(self, *present: Counts) -> None:
        self.present: Sequence[Counts] = present
        self._total = Counts()

    def as_dict(self) -> dict[str, int]:
        """Return all that was ever added."""
        return self._total.as_dict()

    def add(self, more: Mapping[str, int]) -> None:
        """Raise the counts of each of the attempts."""
        for counts in (self._total, *self.present):
            counts.add(more)


@contextmanager
def counting(teacher: nn.Module, counts: Counters) -> Iterator[None]:
    """Counts teacher passes and optimizer steps; no trace is left on the teacher afterwards."""
    from torch.optim.optimizer import register_optimizer_step_post_hook

    def passed(module: nn.Module, args: tuple[Any, ...]) -> None:
        # A copy of the teacher carries the hook along; its passes are not the teacher's.
        if module is teacher and args and hasattr(args[0], "shape"):
            counts.add({"teacher_images": int(args[0].shape[0])})

    def stepped(_optimizer: Any, _args: Any, _kwargs: Any) -> None:
        counts.add({"optimizer_steps": 1})

    handles = [teacher.register_forward_pre_hook(passed), register_optimizer_step_post_hook(stepped)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class Timed(Protocol):
    """Charges the time of the source's calls."""

    def inside(self) -> AbstractContextManager[None]:
        """Mark a block that belongs to the source."""
        ...


class MeteredSource:
    """A source whose calls are charged to synthesis, whoever makes them."""

    def __init__(
        self, source: SampleSource, clock: Timed, counts: Counters, shape: tuple[int, ...] | None = None
    ) -> None:
        self._source = source
        self._clock = clock
        self._counts = counts
        self._shape = shape
        self._bad: Tensor | None = None

    def sample(self, size: int) -> Batch:
        """Draws images; the time is synthesis.

        Raises:
            PluginError: the source gave something else.
        """
        with self._clock.inside():
            batch = self._source.sample(size)
        self._check_shape(batch)
        # Gathered where the images are, and read once at the end.
        bad = ~batch.images.isfinite().all()
        self._bad = bad if self._bad is None else self._bad | bad
        self._counts.add({"images": len(batch.images)})
        return batch

    def check(self) -> None:
        """Looks whether every image that was drawn was finite.

        Raises:
            NonFiniteError: one was not.
        """
        if self._bad is not None and bool(self._bad):
            raise NonFiniteError("an image of the source")

    def _check_shape(self, batch: Batch) -> None:
        images = getattr(batch, "images", None)
        shape = tuple(getattr(images, "shape", ()))
        if len(shape) != 4 or not shape[0] or (self._shape is not None and shape[1:] != self._shape):
            wanted = "N, C, H, W" if self._shape is None else ", ".join(["N", *map(str, self._shape)])
            raise PluginError(
                f"the source gave images of shape {shape}, not ({wanted})", "return a Batch of such images"
            )

    def state_dict(self) -> dict[str, Any]:
        """State of the source within."""
        return self._source.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the source within."""
        self._source.load_state_dict(state)


class MeteredImages(MeteredSource):
    """The same for a source that knows how many images it has."""

    def __init__(
        self, source: SampleSource, size: int, clock: Timed, counts: Counters, shape: tuple[int, ...] | None = None
    ) -> None:
        super().__init__(source, clock, counts, shape)
        self._size = size

    def __len__(self) -> int:
        return self._size


class MeteredLiveSource(MeteredSource):
    """The same for a source that still learns."""

    def __init__(
        self,
        source: LiveSource,
        clock: Timed,
        counts: Counters,
        shape: tuple[int, ...] | None = None,
        timelines: Timelines = tuple,
    ) -> None:
        super().__init__(source, clock, counts, shape)
        self._live = source
        self._timelines = timelines

    @property
    def needs_student(self) -> bool:
        """Whether the source looks at the student."""
        return bool(getattr(self._live, "needs_student", True))

    def train_step(self, size: int, student: nn.Module | None = None) -> Batch:
        """Trains the generator once; the time, passes through teacher and student included, is synthesis."""
        with self._clock.inside():
            batch = self._live.train_step(size, student)
        self._check_shape(batch)
        self._counts.add({"images": len(batch.images), "source_steps": 1})
        for timeline in self._timelines():
            timeline.offer(batch)
        return batch


def metered(
    source: SampleSource,
    clock: Timed,
    counts: Counters,
    shape: tuple[int, ...] | None = None,
    timelines: Timelines = tuple,
) -> MeteredSource:
    """Wraps a source for the clock and the counts.

    Args:
        source: fixed or live.
        clock: charges its time.
        counts: of its images.
        shape: (C, H, W) that its images must have; None: any.
        timelines: of the present attempts; they keep some batches of a live one.
    """
    if is_live(source):
        return MeteredLiveSource(source, clock, counts, shape, timelines)
    if isinstance(source, Sized):
        return MeteredImages(source, len(source), clock, counts, shape)
    return MeteredSource(source, clock, counts, shape)
