"""Measures in fresh processes, set up as workers are: an allocator takes its settings at the start of a process."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any, Literal, get_args

import torch

from dfqbench.api import Precision
from dfqbench.native import binding, built
from dfqbench.plugins import load_plugins
from dfqbench.quant import parse_scheme, prepare
from dfqbench.run.memory import peak_mib, reset_peak
from dfqbench.run.processes import ALLOCATOR
from dfqbench.testing.bench.measure import contestants, measure
from dfqbench.testing.bench.networks import Shape
from dfqbench.testing.toys import toy_card, toy_network

Name = Literal["ours", "textbook", "floor"]

PEAK_STEPS = 2
"""Steps whose peak memory is taken."""


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
        row[f"{name}_mib"] = peak_memory(kind, shape, precision, threads, name)
    return row


def peak_memory(
    kind: str, shape: Shape, precision: Precision, threads: int | None = None, name: Name = "ours"
) -> float:
    """Peak resident memory of some steps in a fresh process, networks and buffers included, in MiB.

    Args:
        kind: as in `measure.kinds`.
        shape: network and data.
        precision: how ours computes.
        threads: CPU threads; None: torch's own default.
        name: whose steps.
    """
    peak: float = _in_a_new_process(_peak, kind, shape, precision, threads, name)
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
    set_up(threads, precision)
    return measure(kind, shape, precision).as_dict()


def _peak(kind: str, shape: Shape, precision: Precision, threads: int | None, name: str) -> float:
    """Peak memory of the steps over that of the process before."""
    set_up(threads, precision)
    cpu = torch.device("cpu")
    _, makers = contestants(kind, shape, precision)
    # Libraries that are imported at first use are nobody's memory.
    prepare(toy_network(), parse_scheme("w4a4"), toy_card())
    load_plugins()
    reset_peak(cpu)
    before = peak_mib(cpu)
    makers[name]().seconds(PEAK_STEPS)
    return round(peak_mib(cpu) - before, 1)


def set_up(threads: int | None, precision: Precision) -> None:
    """Lets this process compute as a worker with that many threads (None: torch's own default) would."""
    if threads is not None:
        torch.set_num_threads(threads)
    binding.use(built().path if precision.rearranges else None)
