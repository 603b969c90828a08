"""A step that is recorded once and then repeated."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dfqbench.api.errors import PluginError
from dfqbench.replay import tally
from dfqbench.replay.tape import Tape

WARM_CALLS = 3
"""Calls of a kind that run as ever before one is recorded: libraries choose and allocate in them."""
MOST_KINDS = 8
"""Recordings that are kept, those used last; each holds the memory of a step."""

Act = Callable[..., tuple[Tensor, ...]]


@dataclass(frozen=True, slots=True)
class _Recording:
    """One kind of step.

    Attributes:
        places: where it reads its inputs.
        results: where it leaves its results.
        launch: does it.
        counts: what it adds to the host's counts.
    """

    places: tuple[Tensor, ...]
    results: tuple[Tensor, ...]
    launch: Callable[[], None]
    counts: tally.Counted


class ReplayedStep:
    """Calls a step; after some calls of the same kind, repeats what the device did in it.

    A recorded step must do the same each time, with the same tensors: everything that differs from call to call is an
    input, a random number of the tape's generators, or part of the kind. Results are then those of the step itself.

    Args:
        tape: records; None: every call is made as ever.
    """

    def __init__(self, tape: Tape | None) -> None:
        self._tape = tape
        self._calls: dict[Hashable, int] = {}
        # In the order of their last use.
        self._kept: dict[Hashable, _Recording] = {}

    @property
    def records(self) -> bool:
        """Whether there is a tape."""
        return self._tape is not None

    def forget(self) -> None:
        """Drops all recordings: tensors that they read have been replaced."""
        self._calls.clear()
        self._kept.clear()

    def __call__(self, kind: Hashable, act: Act, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Does the step.

        Args:
            kind: what the step does depends on it, and on nothing else on the host.
            act: the step, as a function of the inputs.
            inputs: on the device, without a graph.

        Returns:
            What `act` returns, without a graph, in memory of its own.

        Raises:
            PluginError: the step cannot be recorded, for one because it reads a value from the device.
        """
        if self._tape is None:
            return tuple(result.detach() for result in act(*inputs))
        whole = (kind, *((one.shape, one.dtype, one.stride()) for one in inputs))
        recording = self._kept.pop(whole, None)
        if recording is not None:
            self._kept[whole] = recording
            for place, given in zip(recording.places, inputs, strict=True):
                place.copy_(given)
            recording.launch()
            tally.add(recording.counts)
            return _copied(recording.results)
        called = self._calls.get(whole, 0)
        self._calls[whole] = called + 1
        if called < WARM_CALLS:
            tape = self._tape
            return tuple(result.detach() for result in tape.warm(lambda: act(*inputs)))
        return self._recorded(self._tape, whole, act, inputs)

    def _recorded(self, tape: Tape, whole: Hashable, act: Act, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        if len(self._kept) >= MOST_KINDS:
            del self._kept[next(iter(self._kept))]
        places = tuple(given.clone() for given in inputs)
        before = tally.read()
        try:
            results, launch = tape.record(lambda: tuple(result.detach() for result in act(*places)))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            # What a failed recording leaves behind on a device is not known well enough to go on from there.
            raise PluginError(
                f"a training step cannot be recorded for the GPU: {error}",
                "a loss term that reads a value from the device must not say `replayable`; DFQBENCH_GRAPHS=0 records "
                "nothing",
            ) from error
        launch()
        del self._calls[whole]
        # Recording has counted for the step that was launched just now.
        self._kept[whole] = _Recording(places, results, launch, tally.risen(before))
        return _copied(results)


def _copied(results: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return tuple(result.clone() for result in results)
