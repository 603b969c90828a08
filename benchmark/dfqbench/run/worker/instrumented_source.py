"""Counts that do not depend on hardware, and sources whose calls are timed and counted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from torch.optim.optimizer import register_optimizer_step_post_hook

from dfqbench.api.batch import Batch, LiveSource, SampleSource, is_live
from dfqbench.api.errors import NonFiniteError, PluginError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dfqbench.accel.cuda_graph import Counters


@dataclass(slots=True)
class Counts:
    """Hardware-neutral cost of an attempt.

    Attributes:
        images: images drawn from sources.
        sampled_images: those drawn with `sample`, which trains nothing.
        source_steps: steps in which the source learned.
        teacher_images: images that went through the teacher.
        student_images: images that went through the student.
        optimizer_steps: steps of torch optimizers.
    """

    images: int = 0
    sampled_images: int = 0
    source_steps: int = 0
    teacher_images: int = 0
    student_images: int = 0
    optimizer_steps: int = 0

    def as_dict(self) -> dict[str, int]:
        """Return plain data for the record."""
        return asdict(self)

    def set(self, values: Mapping[str, int]) -> None:
        """Set counts by name."""
        for name, count in values.items():
            setattr(self, name, count)

    def add(self, more: Mapping[str, int]) -> None:
        """Raise counts by name."""
        self.set({name: getattr(self, name) + count for name, count in more.items()})


class SharedCounts:
    """Counts of all attempts that share a worker.

    Attributes:
        active: counts of the attempts that the current work is for.
    """

    def __init__(self, *active: Counts) -> None:
        self.active: Sequence[Counts] = active
        self._total = Counts()

    def as_dict(self) -> dict[str, int]:
        """Return the sum of all counts added."""
        return self._total.as_dict()

    def add(self, more: Mapping[str, int]) -> None:
        """Raise the counts of each active attempt."""
        for counts in (self._total, *self.active):
            counts.add(more)

    @contextmanager
    def counting(self, teacher: nn.Module) -> Iterator[None]:
        """Count passes through the teacher and optimizer steps in the block; the hooks are removed afterwards."""

        def count_images(module: nn.Module, args: tuple[Any, ...]) -> None:
            # A copy of the teacher copies the hook; its passes are not the teacher's.
            if module is teacher and args and hasattr(args[0], "shape"):
                self.add({"teacher_images": int(args[0].shape[0])})

        def count_step(_optimizer: Any, _args: Any, _kwargs: Any) -> None:
            self.add({"optimizer_steps": 1})

        handles = [teacher.register_forward_pre_hook(count_images), register_optimizer_step_post_hook(count_step)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


class InstrumentedSource:
    """A source whose calls are timed and counted, regardless of the caller.

    Args:
        source: fixed or live.
        source_call: context manager that charges a block to the source.
        counts: raised by its images and steps.
        shape: (C, H, W) that its images must have.
        on_training_batch: called with each batch of a live source's training.
    """

    def __init__(
        self,
        source: SampleSource,
        source_call: Callable[[], AbstractContextManager[None]],
        counts: Counters,
        shape: tuple[int, ...],
        on_training_batch: Callable[[Batch], object] = lambda _: None,
    ) -> None:
        self._source = source
        self._source_call = source_call
        self._counts = counts
        self._shape = shape
        self._on_training_batch = on_training_batch
        self._bad: Tensor | None = None

    def sample(self, size: int) -> Batch:
        """Draw images.

        Raises:
            PluginError: the source returned something else.
        """
        with self._source_call():
            batch = self._source.sample(size)
        self._check_shape(batch, size)
        # Collected on the device, and read once at the end.
        bad = ~batch.images.isfinite().all()
        self._bad = bad if self._bad is None else self._bad | bad
        self._counts.add({"images": len(batch.images), "sampled_images": len(batch.images)})
        return batch

    def check(self) -> None:
        """Check that every image drawn with `sample` was finite.

        Raises:
            NonFiniteError: one was not.
        """
        if self._bad is not None and bool(self._bad):
            raise NonFiniteError("an image of the source")

    def _check_shape(self, batch: Batch, size: int) -> None:
        shape = tuple(getattr(getattr(batch, "images", None), "shape", ()))
        if shape != (size, *self._shape):
            message = f"the source gave images of shape {shape}, not {(size, *self._shape)}"
            raise PluginError(message, "return a Batch of as many images as were asked for")

    def state_dict(self) -> dict[str, Any]:
        """Return the source's state."""
        return self._source.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the source's state."""
        self._source.load_state_dict(state)


class InstrumentedFixedSource(InstrumentedSource):
    """An instrumented source with a number of images."""

    _source: Any

    def __len__(self) -> int:
        return len(self._source)


class InstrumentedLiveSource(InstrumentedSource):
    """An instrumented source that learns.

    Raises:
        PluginError: it does not give its batch and number of steps.
    """

    _source: LiveSource

    @property
    def batch_size(self) -> int:
        """Images of a training step."""
        return self._positive("batch_size")

    @property
    def training_steps(self) -> int:
        """Steps of the whole training."""
        return self._positive("training_steps")

    def _positive(self, name: str) -> int:
        value = getattr(self._source, name, None)
        if not isinstance(value, int) or value < 1:
            message = f"the live source {type(self._source).__name__} has {name} = {value!r}"
            raise PluginError(message, f"give it the attribute {name}, a number of at least 1")
        return value

    @property
    def needs_student(self) -> bool:
        """Whether a loss of the source needs the student."""
        return bool(getattr(self._source, "needs_student", True))

    def train_step(self, size: int, student: nn.Module | None = None) -> Batch:
        """Train the generator once; passes through teacher and student inside are synthesis too."""
        with self._source_call():
            batch = self._source.train_step(size, student)
        self._check_shape(batch, size)
        self._counts.add({"images": len(batch.images), "source_steps": 1})
        self._on_training_batch(batch)
        return batch


def instrumented_cls(source: SampleSource) -> type[InstrumentedSource]:
    """Return the class with the methods of a source: live, with a number of images, or neither."""
    if is_live(source):
        return InstrumentedLiveSource
    return InstrumentedFixedSource if isinstance(source, Sized) else InstrumentedSource
