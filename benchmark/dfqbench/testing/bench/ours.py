"""The package's own steps, as a worker runs them."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dfqbench.accel.cuda_graph import graphed_steps
from dfqbench.api import Precision, budget_named
from dfqbench.plugins import load_plugins
from dfqbench.quant import parse_scheme, prepare
from dfqbench.quantizers.calibrate import Calibrate, CalibrateParams
from dfqbench.quantizers.distill import Distill
from dfqbench.quantizers.distill_loop import Distillation
from dfqbench.run.evaluate.accuracy import predict
from dfqbench.synth import FixedSource
from dfqbench.testing.bench.networks import Shape
from dfqbench.testing.bench.textbook import CHAINS, Step
from dfqbench.testing.context import ToyContext


def generator_step(shape: Shape, method: str, precision: Precision) -> Step:
    """One step of a live method with its own recipe, after the phases before."""
    network = shape.teacher().to(memory_format=torch.channels_last)
    device = torch.device(shape.device)
    ctx = ToyContext(
        card=shape.card,
        bits=parse_scheme("w4a4"),
        precision=precision,
        device=device,
        make_graphed=graphed_steps(device),
    )
    kind = load_plugins().method_class(method)
    source = kind(kind.params_type()).synthesize(network, ctx)
    for term in source.terms:  # type: ignore[attr-defined]
        term.start = 0
    params = Distill.recipes[kind.quantizer.partition(":")[2]]
    training = Distillation(network, source, [ctx], params)
    training.size = shape.batch
    training.step(0)
    start = training.schedule.student_start

    def step() -> None:
        training.step(start)

    return step


class _Enough(BaseException):
    """Ends a synthesis that has been stepped often enough."""


@dataclass
class _Timed(ToyContext):
    """Notes when each step was reported, and ends the synthesis after `most`."""

    most: int = 0
    moments: list[float] = field(default_factory=list)

    def progress(self, step: int, total: int, **scalars: object) -> None:  # noqa: ARG002
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.moments.append(time.perf_counter())
        if len(self.moments) == self.most:
            raise _Enough


class ImageIteration:
    """Times a synthesis that has a loop of its own: a step lasts from one report to the next."""

    def __init__(self, shape: Shape, method: str, precision: Precision) -> None:
        self._network = shape.teacher().to(memory_format=torch.channels_last)
        self._card = shape.card
        self._device = torch.device(shape.device)
        self._precision = precision
        self._kind = load_plugins().method_class(method)

    def seconds(self, rounds: int) -> list[float]:
        """Wall seconds of `rounds` iterations, after two that are not counted."""
        ctx = _Timed(
            card=self._card,
            precision=self._precision,
            budget=budget_named("short"),
            most=rounds + WARM_ROUNDS + 1,
            device=self._device,
            make_graphed=graphed_steps(self._device),
        )
        with suppress(_Enough):
            self._kind(self._kind.params_type()).synthesize(self._network, ctx)
        times = ctx.moments[WARM_ROUNDS:]
        return [after - before for before, after in itertools.pairwise(times)]


def calibration(shape: Shape) -> Step:
    """`calibrate` with 64 images."""
    network = shape.teacher().to(memory_format=torch.channels_last)
    source = FixedSource(torch.randn(CHAINS, *shape.card.input_size, device=shape.device))
    quantizer = Calibrate(CalibrateParams())

    def step() -> None:
        ctx = ToyContext(card=shape.card, bits=parse_scheme("w4a4"), device=torch.device(shape.device))
        quantizer.quantize(network, source, ctx)

    return step


WARM_ROUNDS = 2
"""Rounds before those that count."""


class Images:
    """An evaluation set in memory."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def batches(self, size: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        """Images (size, C, H, W) and labels, in order."""
        del device
        for begin in range(0, len(self.images), size):
            yield self.images[begin : begin + size], self.labels[begin : begin + size]


def evaluation(shape: Shape, images: Tensor, labels: Tensor) -> Step:
    """`predict` of a W4A4 student."""
    network = shape.teacher().to(memory_format=torch.channels_last)
    student = prepare(network, parse_scheme("w4a4"), shape.card)
    data = Images(images, labels)
    with torch.no_grad(), student.observing("minmax"):
        student(data.images[:8])

    def step() -> None:
        predict(student, data, torch.device(shape.device))  # type: ignore[arg-type]

    return step
