"""Tapes: what records the operations of a step and repeats them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol, TypeVar

import torch

if TYPE_CHECKING:
    from dfqbench.api.context import Context

SWITCH = "DFQBENCH_GRAPHS"
"""Environment variable; 0: every step is launched operation by operation."""

Result = TypeVar("Result")


class Tape(Protocol):
    """Records steps of one loop."""

    def warm(self, act: Callable[[], Result]) -> Result:
        """Runs a step as ever, where recordings will be made."""
        ...

    def record(self, act: Callable[[], Result]) -> tuple[Result, Callable[[], None]]:
        """Notes what a step would do.

        Args:
            act: the step; it must not read from the device.

        Returns:
            What it returned, in memory that stays, and what does the step: the tensors then hold its values.

        Raises:
            RuntimeError: the step cannot be recorded; nothing has been computed.
        """
        ...


MakeTape = Callable[[torch.device, Sequence[torch.Generator]], "Tape | None"]


class CudaTape:
    """Records CUDA graphs.

    Args:
        device: a CUDA device.
        random: generators of the device that steps draw from; a repetition draws what the step would have drawn.
    """

    def __init__(self, device: torch.device, random: Sequence[torch.Generator]) -> None:
        self._device = device
        self._random = random
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def warm(self, act: Callable[[], Result]) -> Result:
        """Runs a step on the stream of the recordings, so that libraries have made their choices before."""
        around = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(around)
        with torch.cuda.stream(self._stream):
            result = act()
        around.wait_stream(self._stream)
        return result

    def record(self, act: Callable[[], Result]) -> tuple[Result, Callable[[], None]]:
        """As of `Tape`; each recording has memory of its own."""
        graph = torch.cuda.CUDAGraph()
        around = torch.cuda.current_stream(self._device)
        for generator in self._random:
            graph.register_generator_state(generator)
        try:
            with torch.cuda.graph(graph, stream=self._stream):
                result = act()
        except BaseException:
            # torch leaves the recording's stream in use where a recording fails.
            torch.cuda.set_stream(around)
            raise
        return result, graph.replay


def _cuda_tape(device: torch.device, random: Sequence[torch.Generator]) -> Tape | None:
    return CudaTape(device, random) if device.type == "cuda" and os.environ.get(SWITCH) != "0" else None


_make: MakeTape = _cuda_tape


def tape_for(ctx: Context, random: Sequence[torch.Generator]) -> Tape | None:
    """A tape for a loop, or None where each operation shall be launched: on the CPU, and on the reference path.

    Args:
        ctx: knows device and precision.
        random: generators of the device that the loop's steps draw from.
    """
    return _make(ctx.device, random) if ctx.precision.rearranges else None


@contextmanager
def taping(make: MakeTape) -> Iterator[None]:
    """Within it, tapes are made by `make`; for tests of what is recorded, and of what is not."""
    global _make  # noqa: PLW0603 - a process computes in one way
    before, _make = _make, make
    try:
        yield
    finally:
        _make = before
