"""CUDA graphs: a training step is captured once and then replayed, with all its kernels in one launch."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from dfqbench.api.errors import PluginError
from dfqbench.api.graphed import EagerStep, MakeGraphed, StepFunction

SWITCH = "DFQBENCH_GRAPHS"
"""Environment variable; `0` disables CUDA graphs."""
WARM_CALLS = 3
"""Eager calls before a capture, in which libraries choose algorithms and allocate."""
MOST_GRAPHS = 8
"""Most graphs of a step; the least recently used one is dropped, since each holds the memory of a step."""

Results = tuple[Tensor, ...]
Run = Callable[[], Results]


class Recorder(Protocol):
    """Captures the operations of one step, which computes on `device`."""

    device: torch.device

    def warm(self, run: Run) -> Results:
        """Run a step eagerly, in the state in which graphs will be captured."""

    def capture(self, run: Run) -> tuple[Results, Callable[[], None]]:
        """Capture a step without computing it; return its results' memory, and the function that computes them.

        Raises:
            RuntimeError: the step cannot be captured.
        """


class Counters(Protocol):
    """Counts of the host during a step, which a replay must raise, too."""

    def as_dict(self) -> dict[str, int]:
        """Return the present counts."""

    def add(self, more: Mapping[str, int]) -> None:
        """Raise the counts."""


class CudaRecorder:
    """Captures CUDA graphs, each with its own memory.

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
        outer = torch.cuda.current_stream(self.device)
        self._stream.wait_stream(outer)
        with warnings.catch_warnings(), torch.cuda.stream(self._stream):
            # Of optimizers made with `capturable=True`: these calls come before the capture.
            warnings.filterwarnings("ignore", "This instance was constructed with capturable=True")
            results = run()
        outer.wait_stream(self._stream)
        return results

    def capture(self, run: Run) -> tuple[Results, Callable[[], None]]:
        """Capture a step, as described in `Recorder`."""
        graph = torch.cuda.CUDAGraph()
        outer = torch.cuda.current_stream(self.device)
        for generator in self._generators:
            graph.register_generator_state(generator)
        try:
            with torch.cuda.graph(graph, stream=self._stream):
                results = run()
        except BaseException:
            # After a failed capture torch's current stream is still the capturing one.
            torch.cuda.set_stream(outer)
            raise
        return results, graph.replay


class _Graph(NamedTuple):
    """A captured step: the memory of its inputs and results, and the counts of a replay."""

    inputs: tuple[Tensor | None, ...]
    results: Results
    replay: Callable[[], None]
    counts: Mapping[str, int]


class GraphedStep:
    """A step that runs eagerly a few times and is then replayed as a CUDA graph.

    Results equal those of the eager step bit for bit if everything that differs from call to call is an input, a random
    number of the recorder's generators, or part of `key` and `choices`.

    Args:
        step: the step.
        recorder: captures it.
        counters: raised by replays, or None.
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
        variant = (key, tuple(choices.items()), torch.is_grad_enabled(), *map(_layout, inputs))
        graph = self._graphs.pop(variant, None)
        if graph is not None:
            self._graphs[variant] = graph
            for memory, value in zip(graph.inputs, inputs, strict=True):
                if isinstance(value, Tensor):
                    memory.copy_(value)  # type: ignore[union-attr]
                elif value is not None:
                    memory.fill_(value)  # type: ignore[union-attr]
            graph.replay()
            if self._counters is not None:
                self._counters.add(graph.counts)
            return tuple(result.clone() for result in graph.results)
        device = self._recorder.device
        tensors = [x if isinstance(x, Tensor | None) else torch.tensor(x, device=device) for x in inputs]
        calls = self._calls[variant] = self._calls.get(variant, 0) + 1
        if calls <= WARM_CALLS:
            return self._recorder.warm(lambda: self._run(tensors, choices))
        del self._calls[variant]
        if len(self._graphs) >= MOST_GRAPHS:
            del self._graphs[next(iter(self._graphs))]
        self._graphs[variant] = graph = self._capture(tensors, choices)
        return tuple(result.clone() for result in graph.results)

    def _run(self, inputs: Sequence[Tensor | None], choices: Mapping[str, Hashable]) -> Results:
        return tuple(result.detach() for result in self._step(*inputs, **choices))

    def _capture(self, inputs: Sequence[Tensor | None], choices: Mapping[str, Hashable]) -> _Graph:
        """Capture the step with copies of the inputs, and replay it once."""
        memory = tuple(None if value is None else value.clone() for value in inputs)
        before = {} if self._counters is None else self._counters.as_dict()
        try:
            results, replay = self._recorder.capture(lambda: self._run(memory, choices))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            # Running the step eagerly instead would be unsafe: the state of the device is not known.
            raise PluginError(
                f"a training step cannot be captured as a CUDA graph: {error}",
                "a loss term that reads a value from the device must say `capturable = False`; DFQBENCH_GRAPHS=0 "
                "captures nothing",
            ) from error
        replay()
        # The capture has raised the counters for this replay.
        after = {} if self._counters is None else self._counters.as_dict()
        return _Graph(memory, results, replay, {name: after[name] - before[name] for name in before})


def graphed_steps(device: torch.device, counters: Counters | None = None) -> MakeGraphed:
    """Return the constructor of a device's steps: captured on CUDA devices (replays raise `counters`), else eager."""
    if device.type != "cuda" or os.environ.get(SWITCH) == "0":
        return EagerStep
    return lambda step, generators=(): GraphedStep(step, CudaRecorder(device, generators), counters)


def _layout(value: Tensor | float | None) -> Hashable:
    return (tuple(value.shape), value.dtype, value.stride()) if isinstance(value, Tensor) else type(value).__name__
