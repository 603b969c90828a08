"""CUDA graphs: a training step is captured once and then replayed, so that its kernels are launched together."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from dfqbench.api.errors import PluginError
from dfqbench.api.graphed import EagerStep, MakeGraphed, StepFunction

SWITCH = "DFQBENCH_GRAPHS"
"""Environment variable; 0: no CUDA graph is captured."""
WARM_CALLS = 3
"""Calls that run eagerly before one is captured: libraries choose algorithms and allocate in them."""
MOST_GRAPHS = 8
"""Graphs that a step keeps, those used last; each holds the memory of a step."""

Results = tuple[Tensor, ...]
Run = Callable[[], Results]


class Recorder(Protocol):
    """Captures the operations of one step, which computes on `device`."""

    device: torch.device

    def warm(self, run: Run) -> Results:
        """Run a step eagerly, in the state in which graphs will be captured."""

    def capture(self, run: Run) -> tuple[Results, Callable[[], None]]:
        """Capture a step without computing anything.

        Returns:
            The step's results, in memory that stays, and the function that computes them.

        Raises:
            RuntimeError: the step cannot be captured.
        """


class Counters(Protocol):
    """Counts that the host keeps while a step runs; a replay must raise them, too."""

    def as_dict(self) -> dict[str, int]:
        """Return the present counts."""

    def add(self, more: Mapping[str, int]) -> None:
        """Raise the counts."""


class CudaRecorder:
    """Captures CUDA graphs; each has memory of its own.

    Args:
        device: a CUDA device.
        generators: generators of the device that the step draws from; a replay draws what the step would have drawn.
    """

    def __init__(self, device: torch.device, generators: Sequence[torch.Generator]) -> None:
        self.device = device
        self._generators = generators
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def warm(self, run: Run) -> Results:
        """Run a step on the stream on which graphs are captured."""
        around = torch.cuda.current_stream(self.device)
        self._stream.wait_stream(around)
        with warnings.catch_warnings(), torch.cuda.stream(self._stream):
            # Of optimizers made with `capturable=True`: these calls come before the capture.
            warnings.filterwarnings("ignore", "This instance was constructed with capturable=True")
            results = run()
        around.wait_stream(self._stream)
        return results

    def capture(self, run: Run) -> tuple[Results, Callable[[], None]]:
        """Capture a step, as described in `Recorder`."""
        graph = torch.cuda.CUDAGraph()
        around = torch.cuda.current_stream(self.device)
        for generator in self._generators:
            graph.register_generator_state(generator)
        try:
            with torch.cuda.graph(graph, stream=self._stream):
                results = run()
        except BaseException:
            # torch leaves the capturing stream current where a capture fails.
            torch.cuda.set_stream(around)
            raise
        return results, graph.replay


@dataclass(frozen=True, slots=True)
class _Graph:
    """One captured step: where it reads its inputs, where it leaves its results, and what it adds to the counters."""

    places: tuple[Tensor | None, ...]
    results: Results
    replay: Callable[[], None]
    counts: Mapping[str, int]


class GraphedStep:
    """Runs a step eagerly a few times, and then replays it as a CUDA graph.

    Results are bit for bit those of the eager step if everything that differs from call to call is an input, a random
    number of the recorder's generators, or part of `key` and `choices`.

    Args:
        step: the step.
        recorder: captures it.
        counters: counts that a replay must raise, or None.
    """

    capturable = True

    def __init__(self, step: StepFunction, recorder: Recorder, counters: Counters | None = None) -> None:
        self._step = step
        self._recorder = recorder
        self._counters = counters
        self._calls: dict[Hashable, int] = {}
        self._graphs: dict[Hashable, _Graph] = {}  # in the order of their last use

    def reset(self) -> None:
        """Forget all graphs."""
        self._calls.clear()
        self._graphs.clear()

    def __call__(self, *inputs: Tensor | float | None, key: Hashable = None, **choices: Hashable) -> Results:
        """Run or replay the step, as described in `dfqbench.api.graphed.GraphedStep`."""
        kind = (key, tuple(choices.items()), torch.is_grad_enabled(), *map(_layout, inputs))
        graph = self._graphs.pop(kind, None)
        if graph is not None:
            self._graphs[kind] = graph
            for place, value in zip(graph.places, inputs, strict=True):
                if isinstance(value, Tensor):
                    place.copy_(value)  # type: ignore[union-attr]
                elif value is not None:
                    place.fill_(value)  # type: ignore[union-attr]
            graph.replay()
            if self._counters is not None:
                self._counters.add(graph.counts)
            return tuple(result.clone() for result in graph.results)
        places = tuple(self._on_device(value) for value in inputs)
        calls = self._calls.get(kind, 0)
        self._calls[kind] = calls + 1
        if calls < WARM_CALLS:
            return self._recorder.warm(lambda: self._detached(places, choices))
        return self._captured(kind, places, choices)

    def _on_device(self, value: Tensor | float | None) -> Tensor | None:
        return value if isinstance(value, Tensor | None) else torch.tensor(value, device=self._recorder.device)

    def _detached(self, places: Sequence[Tensor | None], choices: Mapping[str, Hashable]) -> Results:
        return tuple(result.detach() for result in self._step(*places, **choices))

    def _captured(self, kind: Hashable, given: Sequence[Tensor | None], choices: Mapping[str, Hashable]) -> Results:
        if len(self._graphs) >= MOST_GRAPHS:
            del self._graphs[next(iter(self._graphs))]
        places = tuple(None if value is None else value.clone() for value in given)
        before = {} if self._counters is None else self._counters.as_dict()
        try:
            results, replay = self._recorder.capture(lambda: self._detached(places, choices))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            # What a failed capture leaves behind on a device is not known well enough to go on from there.
            raise PluginError(
                f"a training step cannot be captured as a CUDA graph: {error}",
                "a loss term that reads a value from the device must say `capturable = False`; DFQBENCH_GRAPHS=0 "
                "captures nothing",
            ) from error
        replay()
        del self._calls[kind]
        # The capture has counted for the replay just made.
        after = {} if self._counters is None else self._counters.as_dict()
        self._graphs[kind] = _Graph(places, results, replay, {name: after[name] - before[name] for name in before})
        return tuple(result.clone() for result in results)


def graphed_steps(device: torch.device, counters: Counters | None = None) -> MakeGraphed:
    """Return the constructor of the steps of a device: captured on CUDA devices, eager elsewhere.

    A replay raises `counters`.
    """
    if device.type != "cuda" or os.environ.get(SWITCH) == "0":
        return EagerStep
    return lambda step, generators=(): GraphedStep(step, CudaRecorder(device, generators), counters)


def _layout(value: Tensor | float | None) -> Hashable:
    return (tuple(value.shape), value.dtype, value.stride()) if isinstance(value, Tensor) else type(value).__name__
