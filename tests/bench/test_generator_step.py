"""One step of GDFQ's generator and student against a textbook loop, as a ratio within one run.

The textbook loop is the papers' way: default memory format, a forward hook a BatchNorm, a second teacher pass for the
student's target, `.item()` every step.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor, nn
from torch.nn import functional as F

from dfqbench.api import ModelCard
from dfqbench.models.cifar import CifarResNet
from dfqbench.plugins import load_plugins
from dfqbench.quant import parse_scheme, prepare
from dfqbench.synth import Generator
from dfqbench.testing.context import ToyContext

BATCH = 64
ROUNDS = 7
CARD = ModelCard((3, 32, 32), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 10)


def teacher() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return CifarResNet(20, 10, "A").eval().requires_grad_(False)


def textbook_step() -> Callable[[], None]:
    network = teacher()
    generator = Generator((3, 32, 32), 10)
    student = prepare(network, parse_scheme("w4a4"), CARD).to(memory_format=torch.contiguous_format)
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    inputs: list[Tensor] = []
    for norm in norms:
        norm.register_forward_hook(lambda _m, args, _out: inputs.append(args[0]))
    adam = torch.optim.Adam(generator.parameters(), lr=1e-3, betas=(0.5, 0.999), foreach=False)
    sgd = torch.optim.SGD(student.parameters(), lr=1e-4, momentum=0.9, nesterov=True, foreach=False)
    with torch.no_grad(), student.observing("minmax"):
        student(torch.randn(BATCH, 3, 32, 32))

    def step() -> None:
        inputs.clear()
        labels = torch.randint(0, 10, (BATCH,))
        images = generator(torch.randn(BATCH, 100), labels, None)
        loss = F.cross_entropy(network(images), labels)
        for norm, x in zip(norms, inputs, strict=True):
            mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
            if norm.running_mean is None or norm.running_var is None:
                continue
            loss = loss + 0.1 / len(norms) * (F.mse_loss(mean, norm.running_mean) + F.mse_loss(var, norm.running_var))
        adam.zero_grad()
        loss.backward()
        adam.step()
        loss.item()
        images = images.detach()
        wanted = network(images)
        found = student(images)
        kd = F.kl_div(F.log_softmax(found / 20, 1), F.softmax(wanted / 20, 1), reduction="batchmean") * 40
        total = F.cross_entropy(found, labels) + kd
        sgd.zero_grad()
        total.backward()
        sgd.step()
        total.item()

    return step


def our_step() -> Callable[[], None]:
    from dfqbench.quantizers.distill import DistillParams
    from dfqbench.quantizers.distill_loop import Distillation

    network = teacher().to(memory_format=torch.channels_last)
    ctx = ToyContext(card=CARD, bits=parse_scheme("w4a4"))
    kind = load_plugins().method_class("gdfq")
    source = kind(kind.params_type()).synthesize(network, ctx)
    params = DistillParams(batch_few_classes=BATCH)
    training = Distillation(network, source, ctx, params)
    for index in range(training.plan.range_steps):
        training._step(index)
    start = training.plan.student_start

    def step() -> None:
        training._step(start)

    return step


@pytest.mark.benchmark(group="generator step")
def test_not_slower_than_the_textbook_loop(benchmark: BenchmarkFixture, request: pytest.FixtureRequest) -> None:
    if not request.config.getoption("--benchmark-enable"):
        pytest.skip("measures speed: run `pytest tests/bench --benchmark-enable`")
    ours, textbook = our_step(), textbook_step()
    for step in (ours, textbook):
        for _ in range(2):
            step()
    seconds: dict[str, list[float]] = {"ours": [], "textbook": []}
    for _ in range(ROUNDS):
        # In turn, so that a machine that slows down slows both.
        for name, step in (("ours", ours), ("textbook", textbook)):
            begin = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - begin)
    ratio = statistics.median(seconds["textbook"]) / statistics.median(seconds["ours"])
    info: dict[str, Any] = benchmark.extra_info
    info["textbook_over_ours"] = round(ratio, 3)
    benchmark.pedantic(ours, rounds=3)
    assert ratio > 1.0
