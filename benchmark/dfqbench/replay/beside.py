"""A second queue of a GPU: a student learns from one batch while the generator makes the next."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from dfqbench.replay.tape import SWITCH

if TYPE_CHECKING:
    from torch import Tensor

    from dfqbench.api.context import Context

OVERLAP = "DFQBENCH_OVERLAP"
"""Environment variable; 0: one after the other."""
AHEAD = 2
"""Steps that the first queue may be ahead of the second: each holds a batch."""


class Beside:
    """Work that the first queue's next steps do not wait for.

    Args:
        device: a CUDA device where it is used.
        used: whether there is a second queue; else everything is done in order, as ever.
    """

    def __init__(self, device: torch.device, *, used: bool) -> None:
        self._device = device
        self._stream: Any = torch.cuda.Stream(device) if used else None  # type: ignore[no-untyped-call]
        self._done: deque[Any] = deque()

    @property
    def used(self) -> bool:
        """Whether there is a second queue."""
        return self._stream is not None

    @contextmanager
    def after(self, *taken: Tensor) -> Iterator[None]:
        """Within it, operations are launched on the second queue, which begins once the first has come to here.

        Args:
            taken: tensors of the first queue that are read within; their memory is kept until then.
        """
        if self._stream is None:
            yield
            return
        first = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(first)
        for tensor in taken:
            tensor.record_stream(self._stream)
        with torch.cuda.stream(self._stream):
            yield
        self._done.append(self._stream.record_event())
        if len(self._done) > AHEAD:
            # The host, too: batches that it has launched hold memory until they were read.
            self._done.popleft().synchronize()

    @contextmanager
    def there(self) -> Iterator[None]:
        """Within it, operations are launched on the second queue, after what it was given before."""
        if self._stream is None:
            yield
            return
        with torch.cuda.stream(self._stream):
            yield

    def join(self) -> None:
        """Waits for both queues."""
        if self._stream is not None:
            torch.cuda.synchronize(self._device)


def beside_for(ctx: Context, source: object) -> Beside:
    """A second queue for a student's steps, on GPUs and where the source does not wait for the student.

    Args:
        ctx: knows device and precision.
        source: the student's source of images.
    """
    used = (
        ctx.device.type == "cuda"
        and ctx.precision.rearranges
        and getattr(source, "needs_student", True) is False
        and "0" not in {os.environ.get(SWITCH), os.environ.get(OVERLAP)}
    )
    return Beside(ctx.device, used=used)
