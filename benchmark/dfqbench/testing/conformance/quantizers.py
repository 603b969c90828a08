"""Checks of quantizers: the teacher, randomness, saved states, several students of one loop, live sources."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ParamSpec, TypeVar

import torch

from dfqbench.api import SampleSource
from dfqbench.quant import parse_scheme
from dfqbench.run.worker.device_setup import get_rng_state, seeded, set_rng_state
from dfqbench.run.worker.shared_job import makes_many
from dfqbench.testing.conformance.findings import Fault
from dfqbench.testing.conformance.images import anatomy, compare, unchanged
from dfqbench.testing.conformance.plugin_under_test import plugin_code, same
from dfqbench.testing.conformance.quantizer_under_test import QuantizerUnderTest, fixed_source
from dfqbench.testing.conformance.resume import RESTORED, KeepingContext
from dfqbench.testing.context import ToyContext
from dfqbench.testing.toys import ToySource, toy_network

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
SOURCES: tuple[Callable[[], SampleSource], ...] = (fixed_source, ToySource)


def teacher(quantizer: QuantizerUnderTest) -> None:
    """Check that quantization leaves the teacher as it was."""
    network = toy_network()
    before = anatomy(network)
    quantizer.quantized(teacher=network)
    compare(before, anatomy(network), "quantize")


def seeds(quantizer: QuantizerUnderTest) -> None:
    """Check that the same seed gives the same student."""
    first = quantizer.quantized().state_dict()
    torch.rand(7)  # another cell may have drawn numbers in this process
    if not same(first, quantizer.quantized().state_dict()):
        raise Fault(
            "two runs with the same seed made different students",
            "draw from ctx.generator or seed your own with ctx.seed('name'); keep no state in modules or classes",
        )


def rng(quantizer: QuantizerUnderTest) -> None:
    """Check that the caller's random numbers and torch's global settings are as before."""
    with unchanged("quantize"):
        quantizer.quantized()
    if quantizer.dry_run.random:
        raise Fault(
            f"importing the plugin changes {', '.join(quantizer.dry_run.random)}",
            "seed nothing and set nothing while a module is imported; use ctx.generator inside quantize",
        )


def resume(quantizer: QuantizerUnderTest) -> Iterable[str]:
    """Check that a run that is stopped at a checkpoint and resumed ends with the student of the straight run."""
    for source in SOURCES:
        ctx = KeepingContext(quantizer.context())
        expected = quantizer.quantized(source(), ctx).state_dict()
        count = len(ctx.saved)
        if not count and len(ctx.steps) > 1:
            yield (
                "quantize reports steps but no checkpoint, so an interrupted run starts afresh; "
                "call ctx.checkpoint(lambda: {...}) after each step and begin from ctx.restored"
            )
            return
        for index in sorted({0, count // 2, count - 1} if count else ()):
            resumed = quantizer.quantized(source(), ctx.resumed(index))
            if not same(expected, resumed.state_dict()):
                raise Fault(
                    f"resumed from checkpoint {index + 1} of {count}, quantize made another student",
                    "put everything that the next step reads into the checkpoint (student, optimizer, counters, the "
                    f"source's state_dict) and continue from ctx.restored; {RESTORED}",
                )


class _ContextOfOne(ToyContext):
    """Give the parts of one student their own global random numbers, as the host does in a shared loop."""

    generators: Any = None

    def for_student(
        self, act: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Result | None:
        outer = get_rng_state()
        if self.generators is not None:
            set_rng_state(self.generators)
        try:
            return act(*args, **kwargs)
        finally:
            self.generators = get_rng_state()
            set_rng_state(outer)


def many(quantizer: QuantizerUnderTest) -> None:
    """Check that each student that `quantize_many` makes is the one that `quantize` makes alone."""
    instance = quantizer.instance()
    if not makes_many(instance):
        return
    base = quantizer.context()
    contexts = [_ContextOfOne(budget=base.budget, bits=parse_scheme(scheme)) for scheme in quantizer.schemes]
    with plugin_code("quantize_many"), seeded(base.seed("quantization", "global")):
        students = list(instance.quantize_many(toy_network(), ToySource(), contexts))
    if len(students) != len(contexts):
        raise Fault(f"quantize_many gave {len(students)} students for {len(contexts)} contexts", "return one for each")
    for scheme, student in zip(quantizer.schemes, students, strict=True):
        alone = quantizer.quantized(ToySource(), quantizer.context(scheme)).state_dict()
        if student is None or not same(student.state_dict(), alone):
            raise Fault(
                f"quantize_many made another student under {scheme} than quantize",
                "call the source once a step for all students, and do the work for one inside its ctx.for_student(...)",
            )


def live(quantizer: QuantizerUnderTest) -> Iterable[str]:
    """Check that images are not drawn from a generator that was never trained."""
    source = ToySource()
    quantizer.quantized(source)
    if source.draws and not source.steps:
        yield (
            "it draws from a live source that was never trained, so its images are worth nothing; call "
            "dfqbench.quantizers.train_source(source, [ctx]) first, or train_step in a loop of your own"
        )
