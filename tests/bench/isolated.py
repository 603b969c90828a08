"""Measurements in a fresh process, set up as a worker is: an allocator reads its settings when a process starts."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any
from unittest import mock

import torch

from dfqbench.accel import using_kernels
from dfqbench.api import Precision
from dfqbench.run.execute.processes import ALLOCATOR
from dfqbench.run.worker.device_setup import compute_on, peak_mib, reset_peak
from shapes import Shape
from steps import contestants, generator_step, timer

TURNS = 3  # of each contestant, so that a machine that slows down slows all of them


def isolated(function: Callable[..., Any], *args: Any) -> Any:
    variables = {"GLIBC_TUNABLES": os.environ.get("GLIBC_TUNABLES", ALLOCATOR)}
    with mock.patch.dict(os.environ, variables), ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def median_seconds(shape: Shape, precision: Precision, name: str, *, rounds: int = 3) -> dict[str, float]:
    compute_on(torch.device(shape.device))
    timers = contestants(shape, precision, name)
    times: dict[str, list[float]] = {key: [] for key in timers}
    for turn in range(TURNS + 1):
        for contestant, seconds in timers.items():
            # What the package is compared with must not use its kernels.
            device = "cpu" if contestant in {"baseline", "lower_bound"} else shape.device
            with using_kernels(device, fast=precision.rearranges):
                measured = seconds(rounds)
            if turn > 0:  # the first turn warms up
                times[contestant] += measured
    return {key: statistics.median(values) for key, values in times.items()}


def resident_mib(shape: Shape, precision: Precision, method: str) -> float:
    """Return by how much two steps of a method raise the peak of this process's resident memory, in MiB.

    Networks and libraries that are loaded at first use are included. The peak of the same step varied by a factor of
    three, since it depends on how freed pieces of the heap fit the next tensors.
    """
    cpu = torch.device("cpu")
    reset_peak(cpu)
    before = peak_mib(cpu)
    timer(generator_step(shape, method, precision), "cpu")(2)
    return peak_mib(cpu) - before
