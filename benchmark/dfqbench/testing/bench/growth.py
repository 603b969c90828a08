"""How a GDFQ step's time grows: with batch, image size, network, number of bit-widths, number of workers.

Each series changes one thing of the CIFAR step (ResNet-20, batch 200, 32 pixels, one student, one worker), at one CPU
thread; its times are ratios to that step, which is measured again beside each of them.
"""

from __future__ import annotations

import itertools
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from typing import Any

import torch
from torch import nn

from dfqbench.api import Precision
from dfqbench.models.cifar import CifarResNet
from dfqbench.plugins import load_plugins
from dfqbench.quant import parse_scheme
from dfqbench.quantizers.distill import Distill
from dfqbench.quantizers.distill_loop import Distillation
from dfqbench.testing.bench.apart import set_up
from dfqbench.testing.bench.networks import CIFAR
from dfqbench.testing.context import ToyContext

SCHEMES = ("w4a4", "w3a3", "w2a2", "w5a5", "w8a8")
"""Bit-widths of the students, the first so many."""
ROUNDS = 3
"""Steps that are timed, after one that is not."""
SERIES: dict[str, tuple[int, ...]] = {
    "batch": (25, 50, 100, 200),
    "image side": (16, 32, 64),
    "layers of the ResNet": (20, 32, 56),
    "bit-widths": (1, 2, 3, 5),
    "workers": (1, 2),
}


@dataclass(frozen=True, slots=True)
class Setting:
    """One point of a series.

    Attributes:
        batch: images of a step.
        side: of an image in pixels.
        layers: of the CIFAR ResNet.
        students: in one loop on one generator.
        workers: at once.
    """

    batch: int = CIFAR.batch
    side: int = 32
    layers: int = 20
    students: int = 1
    workers: int = 1


BASE = Setting()
_FIELDS = dict(zip(SERIES, ("batch", "side", "layers", "students", "workers"), strict=True))


def growth(series: str, precision: Precision, base: Setting = BASE) -> list[dict[str, Any]]:
    """Times of one series.

    Args:
        series: a key of `SERIES`.
        precision: how training computes.
        base: what the others are held against.

    Returns:
        For each value: `series`, `value`, `seconds` of a step, and `ratio` to the base, measured beside it.
    """
    rows = []
    for value in SERIES[series]:
        setting = replace(base, **{_FIELDS[series]: value})
        plain = _seconds(base, precision)
        found = plain if setting == base else _seconds(setting, precision)
        rows.append({"series": series, "value": value, "seconds": found, "ratio": found / plain})
    return rows


def render(rows: list[dict[str, Any]]) -> str:
    """A Markdown table of such rows."""
    from tabulate import tabulate

    cells = [
        (row["series"], str(row["value"]), f"{row['seconds'] * 1000:.0f} ms", f"{row['ratio']:.2f}") for row in rows
    ]
    headers = ("what changes", "to", "a step", "x the base")
    return tabulate(cells, headers=headers, tablefmt="github", disable_numparse=True)


def _seconds(setting: Setting, precision: Precision) -> float:
    """Median seconds of a step in fresh processes, one for each worker."""
    with ProcessPoolExecutor(setting.workers, mp_context=get_context("spawn")) as pool:
        jobs = [pool.submit(_measured, setting, precision) for _ in range(setting.workers)]
        return statistics.fmean(job.result() for job in jobs)


def _measured(setting: Setting, precision: Precision) -> float:
    set_up(1, precision)
    network = _network(setting)
    method = load_plugins().method_class("gdfq")
    shape = replace(CIFAR, batch=setting.batch, card=replace(CIFAR.card, input_size=(3, setting.side, setting.side)))
    contexts = [
        ToyContext(card=shape.card, bits=parse_scheme(scheme), precision=precision)
        for scheme in SCHEMES[: setting.students]
    ]
    source: Any = method(method.params_type()).synthesize(network, contexts[0])
    for term in source.terms:
        term.start = 0
    training = Distillation(network, source, contexts, Distill.recipes["gdfq"])
    training.size = shape.batch
    training.step(0)
    times = []
    for _ in range(ROUNDS + 1):
        training.step(training.schedule.student_start)
        times.append(time.perf_counter())
    return statistics.median(after - before for before, after in itertools.pairwise(times))


def _network(setting: Setting) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = CifarResNet(setting.layers, CIFAR.card.classes, "A").train()
        with torch.no_grad():
            network(torch.randn(8, 3, setting.side, setting.side))
    return network.eval().requires_grad_(requires_grad=False).to(memory_format=torch.channels_last)
