"""Measures in fresh processes, set up as workers are: an allocator takes its settings at the start of a process."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any, Literal, get_args

import torch
from torch.profiler import ProfilerActivity, profile

from dfqbench.accel import set_kernels
from dfqbench.api import Precision
from dfqbench.run.execute.processes import ALLOCATOR
from dfqbench.run.worker.device_setup import compute_on, peak_mib, reset_peak
from dfqbench.testing.bench.measure import contestants, measure
from dfqbench.testing.bench.networks import Shape

Name = Literal["ours", "textbook", "floor"]

PEAK_STEPS = 0
"""Steps whose peak memory is taken, besides those by which a contestant warms up."""


def measured(kind: str, shape: Shape, precision: Precision, threads: int | None = None) -> dict[str, Any]:
    """One row: times from a process in which all contestants take turns, peak memory from a process for each.

    Args:
        kind: as in `measure.kinds`.
        shape: network and data.
        precision: how ours computes.
        threads: CPU threads; None: torch's own default.

    Returns:
        `Row.as_dict()`, with `ours_mib`, `textbook_mib` and `floor_mib`.
    """
    row: dict[str, Any] = _in_a_new_process(_times, kind, shape, precision, threads)
    for name in get_args(Name):
        row[f"{name}_mib"] = peak_memory(kind, shape, precision, threads, name=name)
    return row


def peak_memory(
    kind: str,
    shape: Shape,
    precision: Precision,
    threads: int | None = None,
    *,
    name: Name = "ours",
    measure: Callable[[Callable[[], object]], float] | None = None,
) -> float:
    """Peak memory of some steps in a fresh process, networks and buffers included, in MiB.

    Args:
        kind: as in `measure.kinds`.
        shape: network and data.
        precision: how ours computes.
        threads: CPU threads; None: torch's own default.
        name: whose steps.
        measure: `held_at_once` by default, or `resident`.
    """
    peak: float = _in_a_new_process(_peak, measure or held_at_once, kind, shape, precision, threads, name)
    return peak


def _in_a_new_process(function: Any, *arguments: Any) -> Any:
    before = os.environ.get("GLIBC_TUNABLES")
    os.environ.setdefault("GLIBC_TUNABLES", ALLOCATOR)
    try:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            return pool.submit(function, *arguments).result()
    finally:
        if before is None:
            del os.environ["GLIBC_TUNABLES"]


def _times(kind: str, shape: Shape, precision: Precision, threads: int | None) -> dict[str, Any]:
    set_up(threads, precision, shape.device)
    return measure(kind, shape, precision).as_dict()


def _peak(  # noqa: PLR0917 - a process of its own takes no keywords
    measure: Callable[[Callable[[], object]], float],
    kind: str,
    shape: Shape,
    precision: Precision,
    threads: int | None,
    name: str,
) -> float:
    set_up(threads, precision, shape.device)
    if shape.device != "cpu":
        torch.cuda.init()  # type: ignore[no-untyped-call]
    _, makers = contestants(kind, shape, precision)
    return measure(lambda: makers[name]().seconds(PEAK_STEPS))


def resident(function: Callable[[], object]) -> float:
    """Peak of this process's resident memory in MiB while `function` ran, over what it was before.

    It depends on how the freed pieces of the heap fit the next tensors: of one and the same step it varied by a factor
    of three. Libraries that are loaded at first use are part of it.
    """
    cpu = torch.device("cpu")
    reset_peak(cpu)
    before = peak_mib(cpu)
    function()
    return round(peak_mib(cpu) - before, 1)


def held_at_once(function: Callable[[], object]) -> float:
    """Most MiB that tensors held at once while `function` ran, over what they held before.

    Counted where torch gives out memory, so that it is the same each time. What an operation needs for itself and does
    not ask torch for is not seen.
    """
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        return round((torch.cuda.max_memory_allocated() - before) / 2**20, 1)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        function()
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return round(max(itertools.accumulate(changes), default=0) / 2**20, 1)


def set_up(threads: int | None, precision: Precision, device: str = "cpu") -> None:
    """Lets this process compute as a worker with that many threads (None: torch's own default) would."""
    if threads is not None:
        torch.set_num_threads(threads)
    compute_on(torch.device(device))
    set_kernels(device, fast=precision.rearranges)
