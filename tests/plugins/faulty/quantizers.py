"""Quantizers that break the contract while they run, each in one way, named after it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dfqbench.api import Context, Offer, Quantizer, SampleSource, hookimpl
from dfqbench.quantizers import train_source

if TYPE_CHECKING:
    from torch import nn

    from dfqbench.quant import Student


def calibrated(teacher: nn.Module, source: SampleSource, ctx: Context) -> Student:
    import torch

    train_source(source, [ctx])
    student = ctx.prepare(teacher)
    with torch.no_grad(), student.observing("minmax"):
        student(source.sample(8).images)
    return student


class Sound(Quantizer):
    name = "sound-quantizer"
    title = "For tests of the checks"

    def quantize(self, teacher: nn.Module, source: SampleSource, ctx: Context) -> Any:
        return calibrated(teacher, source, ctx)


def faulty(quantize: Callable[..., Any]) -> type[Quantizer]:
    return type(quantize.__name__, (Sound,), {"name": quantize.__name__.replace("_", "-"), "quantize": quantize})


@faulty
def no_student(self: Quantizer, teacher: nn.Module, source: SampleSource, ctx: Context) -> Any:
    return None


@faulty
def no_range(self: Quantizer, teacher: nn.Module, source: SampleSource, ctx: Context) -> Any:
    train_source(source, [ctx])
    return ctx.prepare(teacher)


@faulty
def needs_activations(self: Quantizer, teacher: nn.Module, source: SampleSource, ctx: Context) -> Any:
    student = calibrated(teacher, source, ctx)
    student.activation_quantizers()[0].set_range(0, 1)
    return student


@faulty
def not_finite(self: Quantizer, teacher: nn.Module, source: SampleSource, ctx: Context) -> Any:
    student = calibrated(teacher, source, ctx)
    for parameter in student.parameters():
        parameter.data.fill_(float("nan"))
    return student


@faulty
def other_scheme(self: Quantizer, teacher: nn.Module, source: SampleSource, ctx: Context) -> Any:
    from dfqbench.quant import parse_scheme, prepare

    return prepare(teacher, parse_scheme("w8a8"), ctx.card)


@faulty
def prunes_teacher(self: Quantizer, teacher: nn.Module, source: SampleSource, ctx: Context) -> Any:
    next(teacher.parameters()).data.mul_(0.9)
    return calibrated(teacher, source, ctx)


@faulty
def by_chance(self: Quantizer, teacher: nn.Module, source: SampleSource, ctx: Context) -> Any:
    student = calibrated(teacher, source, ctx)
    for quantizer in student.activation_quantizers():
        quantizer.set_range(0, 1 + int.from_bytes(os.urandom(2), "big"))
    return student


@faulty
def leaves_no_grad(self: Quantizer, teacher: nn.Module, source: SampleSource, ctx: Context) -> Any:
    import torch

    student = calibrated(teacher, source, ctx)
    torch.set_grad_enabled(False)
    return student


@faulty
def opens_data(self: Quantizer, teacher: nn.Module, source: SampleSource, ctx: Context) -> Any:
    Path(os.environ["DFQBENCH_DATA"].split(os.pathsep)[0], "images.npz").read_bytes()
    return calibrated(teacher, source, ctx)


@faulty
def untrained(self: Quantizer, teacher: nn.Module, source: SampleSource, ctx: Context) -> Any:
    import torch

    student = ctx.prepare(teacher)
    with torch.no_grad(), student.observing("minmax"):
        student(source.sample(8).images)
    return student


def shaken(ctx: Context, *, draws_after: bool) -> float:
    """Sum noise over a few steps; drawn after `restored` was read, the first number differs where it goes on."""
    import torch

    first = 0.0 if draws_after else float(torch.rand(()))
    state = ctx.restored or {"step": 0, "sum": 0.0}
    if draws_after:
        first = float(torch.rand(()))
    total = state["sum"]
    for step in range(state["step"], 4):
        total += float(torch.rand(()))
        ctx.progress(step + 1, 4)
        ctx.checkpoint(lambda step=step, total=total: {"step": step + 1, "sum": total})
    return first + total


def _widened(teacher: nn.Module, source: SampleSource, ctx: Context, width: float) -> Any:
    student = calibrated(teacher, source, ctx)
    for quantizer in student.activation_quantizers():
        quantizer.set_range(0, 1 + width)
    return student


class _Frozen:
    """Hides `train_step`, so that `train_source` leaves the checkpoints to the caller."""

    def __init__(self, source: SampleSource) -> None:
        self.sample = source.sample


@faulty
def draws_after_restored(self: Quantizer, teacher: nn.Module, source: SampleSource, ctx: Context) -> Any:
    return _widened(teacher, _Frozen(source), ctx, shaken(ctx, draws_after=True))


@faulty
def draws_before_restored(self: Quantizer, teacher: nn.Module, source: SampleSource, ctx: Context) -> Any:
    return _widened(teacher, _Frozen(source), ctx, shaken(ctx, draws_after=False))


@faulty
def no_checkpoint(self: Quantizer, teacher: nn.Module, source: SampleSource, ctx: Context) -> Any:
    for step in range(3):
        ctx.progress(step + 1, 3)
    return calibrated(teacher, _Frozen(source), ctx)


class StepsForEach(Sound):
    """Trains the source anew for each student."""

    name = "steps-for-each"

    def quantize(self, teacher: nn.Module, source: SampleSource, ctx: Context) -> Any:
        return self.quantize_many(teacher, source, [ctx])[0]

    def quantize_many(self, teacher: nn.Module, source: SampleSource, contexts: Sequence[Context]) -> Any:
        return [ctx.for_student(calibrated, teacher, source, ctx) for ctx in contexts]


@hookimpl
def dfqbench_quantizers() -> list[Offer]:
    return [Offer(cls.name, f":{cls.__name__}") for cls in (Sound, *Sound.__subclasses__())]
