"""Takes the contestants' times in turn, and makes rows of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch

from dfqbench.accel import using_kernels
from dfqbench.api import Precision
from dfqbench.testing.bench import floor, ours, textbook
from dfqbench.testing.bench.networks import Shape
from dfqbench.testing.bench.textbook import Step

GENERATORS = {"gdfq": "", "clusterq": "centroids", "acq": "attention", "temporal": "margin"}
"""Live methods, and what their textbook adds to GDFQ's."""
ITERATIONS = {"zeroq": "adam", "dffg": "sign"}
"""Methods that learn images directly, and their textbook's rule."""
EVALUATED = {"cifar": 2000, "imagenet": 100}
"""Images of an evaluation pass."""
GPU_STEPS = 10
"""Steps of a round on a GPU."""
TURNS = 3
"""How often the contestants take turns, so that a machine that slows down slows all."""


class Contestant(Protocol):
    """Something whose steps can be timed."""

    def seconds(self, rounds: int) -> list[float]:
        """Wall seconds of `rounds` steps, warmed up."""
        ...


class Stepped:
    """A contestant that is a function.

    Args:
        step: the function.
        device: where it computes; a GPU is waited for once in `GPU_STEPS` calls, as host and GPU work side by side.
    """

    def __init__(self, step: Step, device: str) -> None:
        self._step = step
        self._on_gpu = device != "cpu"
        self._warm = False

    def seconds(self, rounds: int) -> list[float]:
        """Wall seconds of a call, `rounds` times, after two that are not counted."""
        for _ in range(0 if self._warm else ours.WARM_ROUNDS):
            self._round()
        self._warm = True
        return [self._round() for _ in range(rounds)]

    def _round(self) -> float:
        steps = GPU_STEPS if self._on_gpu else 1
        begin = time.perf_counter()
        for _ in range(steps):
            self._step()
        if self._on_gpu:
            torch.cuda.synchronize()
        return (time.perf_counter() - begin) / steps


def plainly(step: Step) -> Step:
    """The step in plain torch: the textbook's student and the floor's generator must not share the kernels."""

    def run() -> None:
        with using_kernels("cpu"):
            step()

    return run


@dataclass(frozen=True, slots=True)
class Row:
    """One measured step.

    Attributes:
        what: the step.
        shape: network and data.
        batch: images of a step.
        precision: how ours computes.
        threads: CPU threads.
        device: the card's name, or `cpu`.
        ours: median seconds.
        textbook: median seconds of the textbook loop.
        floor: median seconds of the bare networks.
    """

    what: str
    shape: str
    batch: int
    precision: str
    threads: int
    device: str
    ours: float
    textbook: float
    floor: float

    @property
    def speedup(self) -> float:
        """How many times faster than the textbook."""
        return self.textbook / self.ours

    @property
    def overhead(self) -> float:
        """How many times the bare networks' time."""
        return self.ours / self.floor

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self) | {"textbook/ours": round(self.speedup, 3), "ours/floor": round(self.overhead, 3)}


def kinds() -> list[str]:
    """Names of the measured steps."""
    return [*GENERATORS, *ITERATIONS, "calibrate", "evaluate"]


def contestants(kind: str, shape: Shape, precision: Precision) -> tuple[int, dict[str, Callable[[], Contestant]]]:
    """Images of a step, and makers of ours, textbook and floor.

    Args:
        kind: as in `kinds`.
        shape: network and data.
        precision: how ours computes.
    """
    if kind in GENERATORS:
        return shape.batch, {
            "ours": lambda: Stepped(ours.generator_step(shape, kind, precision), shape.device),
            "textbook": lambda: Stepped(plainly(textbook.generator_step(shape, GENERATORS[kind])), shape.device),
            "floor": lambda: Stepped(plainly(floor.generator_step(shape, precision)), shape.device),
        }
    if kind in ITERATIONS:
        return textbook.CHAINS, {
            "ours": lambda: ours.ImageIteration(shape, kind, precision),
            "textbook": lambda: Stepped(plainly(textbook.image_iteration(shape, ITERATIONS[kind])), shape.device),
            "floor": lambda: Stepped(plainly(floor.image_iteration(shape, precision)), shape.device),
        }
    count = textbook.CHAINS if kind == "calibrate" else EVALUATED["cifar" if shape.batch > 16 else "imagenet"]
    images = torch.randn(count, *shape.card.input_size, device=shape.device)
    labels = torch.zeros(count, dtype=torch.int64, device=shape.device)
    size = count if kind == "calibrate" else 500 if shape.batch > 16 else 50
    bare = Stepped(plainly(floor.forward(shape, images, size)), shape.device)
    if kind == "calibrate":
        return count, {
            "ours": lambda: Stepped(ours.calibration(shape), shape.device),
            "textbook": lambda: Stepped(plainly(textbook.calibration(shape)), shape.device),
            "floor": lambda: bare,
        }
    given = images.to(memory_format=torch.channels_last)  # as the host's own sets give them
    return count, {
        "ours": lambda: Stepped(ours.evaluation(shape, given, labels), shape.device),
        "textbook": lambda: Stepped(plainly(textbook.evaluation(shape, images, labels, size)), shape.device),
        "floor": lambda: bare,
    }


def measure(kind: str, shape: Shape, precision: Precision, rounds: int | None = None) -> Row:
    """Times one kind of step.

    Args:
        kind: as in `kinds`.
        shape: network and data.
        precision: how ours computes.
        rounds: rounds of each turn; None: as the shape says.
    """
    batch, makers = contestants(kind, shape, precision)
    runners = {name: make() for name, make in makers.items()}
    times: Mapping[str, list[float]] = {name: [] for name in runners}
    for _ in range(TURNS):
        for name, runner in runners.items():
            times[name] += runner.seconds(rounds or shape.rounds)
    middle = {name: statistics.median(values) for name, values in times.items()}
    return Row(
        what=kind,
        shape=shape.name,
        batch=batch,
        precision=str(precision),
        threads=torch.get_num_threads(),
        device=shape.device if shape.device == "cpu" else torch.cuda.get_device_name(),
        ours=middle["ours"],
        textbook=middle["textbook"],
        floor=middle["floor"],
    )
