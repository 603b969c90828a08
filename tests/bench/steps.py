"""The package's own steps as a worker runs them, beside what they are compared with."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor

import baseline
from dfqbench.accel.cuda_graph import graphed_steps
from dfqbench.api import Precision, budget_named
from dfqbench.plugins import load_plugins
from dfqbench.quant import parse_scheme, prepare
from dfqbench.quantizers.calibrate import Calibrate, CalibrateParams
from dfqbench.quantizers.distill import Distill
from dfqbench.quantizers.distill_loop import Distillation
from dfqbench.run.evaluate.accuracy import BATCH, LARGE_BATCH, SMALL_IMAGE, predict
from dfqbench.synth import FixedSource
from dfqbench.testing.context import ToyContext
from shapes import IMAGES, Shape

IMAGE_METHODS: dict[str, dict[str, Any]] = {"zeroq": {}, "dffg": {"images": IMAGES, "keep": "2X"}}
"""Methods that learn images, with parameters for one batch of `IMAGES`."""
STEPS = ("gdfq", "clusterq", "acq", "temporal", *IMAGE_METHODS, "calibrate", "evaluate")
W4A4 = parse_scheme("w4a4")
GPU_CALLS = 10  # between two synchronizations with a GPU
WARM_UP = 2  # iterations of an image method before those that count

Step = Callable[[], object]
Timer = Callable[[int], list[float]]  # from a number of rounds to the seconds of a step in each


def timer(step: Step, device: str) -> Timer:
    calls = 1 if device == "cpu" else GPU_CALLS

    def seconds(rounds: int) -> list[float]:
        times = [time.perf_counter()]
        for _ in range(rounds):
            for _ in range(calls):
                step()
            if device != "cpu":
                torch.cuda.synchronize()
            times.append(time.perf_counter())
        return [(after - before) / calls for before, after in itertools.pairwise(times)]

    return seconds


def contestants(shape: Shape, precision: Precision, name: str) -> dict[str, Timer]:
    """Return the timers of one of `STEPS`: `dfqbench`, and `baseline` (training) or `lower_bound` (bare networks)."""
    if name in IMAGE_METHODS:
        images_baseline = timer(baseline.image_step(shape, name), shape.device)
        return {"dfqbench": image_timer(shape, name, precision), "baseline": images_baseline}
    if name == "calibrate":
        images = shape.noise(IMAGES)
        steps = {"dfqbench": calibration(shape, images), "lower_bound": forward(shape, images, IMAGES)}
    elif name == "evaluate":
        images, batch = shape.noise(shape.evaluated), LARGE_BATCH if shape.side <= SMALL_IMAGE else BATCH
        steps = {"dfqbench": evaluation(shape, images), "lower_bound": forward(shape, images, batch)}
    else:
        steps = {"dfqbench": generator_step(shape, name, precision), "baseline": baseline.generator_step(shape, name)}
    return {key: timer(step, shape.device) for key, step in steps.items()}


def context(shape: Shape, precision: Precision = Precision.FLOAT32) -> ToyContext:
    device = torch.device(shape.device)
    graphed = graphed_steps(device)
    return ToyContext(card=shape.card, bits=W4A4, precision=precision, device=device, make_graphed=graphed)


def generator_step(shape: Shape, method: str, precision: Precision) -> Step:
    """Return one step of a generator method and its student, all losses switched on."""
    network, ctx = shape.teacher(), context(shape, precision)
    method_cls = load_plugins().method_class(method)
    source: Any = method_cls(method_cls.params_type()).synthesize(network, ctx)
    for term in source.terms:
        term.start = 0
    training = Distillation(network, source, [ctx], Distill.recipes[method_cls.quantizer.partition(":")[2]])
    training.size = shape.batch
    training.step(0)
    return lambda: training.step(training.schedule.student_start)


class _EnoughError(BaseException):
    """End a synthesis after enough steps."""


def image_timer(shape: Shape, method: str, precision: Precision) -> Timer:
    """Return the timer of a method that has a loop of its own: a step lasts from one report to the next."""
    network = shape.teacher()
    method_cls = load_plugins().method_class(method)

    def seconds(rounds: int) -> list[float]:
        times: list[float] = []

        def progress(*_: int, **_scalars: object) -> None:
            if shape.device != "cpu":
                torch.cuda.synchronize()
            times.append(time.perf_counter())
            if len(times) > WARM_UP + rounds:
                raise _EnoughError

        ctx = replace(context(shape, precision), budget=budget_named("short"))
        with mock.patch.object(ctx, "progress", progress), suppress(_EnoughError):
            method_cls(method_cls.params_type(**IMAGE_METHODS[method])).synthesize(network, ctx)
        return [after - before for before, after in itertools.pairwise(times[WARM_UP:])]

    return seconds


def calibration(shape: Shape, images: Tensor) -> Step:
    network, source, ctx = shape.teacher(), FixedSource(images), context(shape)
    return lambda: Calibrate(CalibrateParams()).quantize(network, source, ctx)


def evaluation(shape: Shape, images: Tensor) -> Step:
    student = prepare(shape.teacher(), W4A4, shape.card)
    with torch.no_grad(), student.observing("minmax"):
        student(images[:8])
    labels = torch.zeros(len(images), dtype=torch.int64, device=images.device)
    batches = lambda size, _device: zip(torch.split(images, size), torch.split(labels, size), strict=True)  # noqa: E731
    data: Any = SimpleNamespace(labels=labels, batches=batches)
    return lambda: predict(student, data, torch.device(shape.device))


def forward(shape: Shape, images: Tensor, batch: int) -> Step:
    """Return the full-precision network's passes over the images: the least that calibration or evaluation can cost."""
    network = torch.no_grad()(shape.teacher())
    return lambda: [network(part) for part in torch.split(images, batch)]
