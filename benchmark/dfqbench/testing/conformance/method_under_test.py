"""The method under test, and its runs on toy networks, as the host would run it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from dfqbench.api import Batch, Method, SampleSource, is_live
from dfqbench.plugins.params import build_params
from dfqbench.quant import Scheme, parse_scheme
from dfqbench.run.worker.device_setup import seeded
from dfqbench.testing.conformance.plugin_under_test import (
    BUDGET,
    DEFAULT_LIMIT,
    SHORTEST,
    PluginUnderTest,
    checked_student,
    make_quantizer,
    plugin_code,
    schemes_for,
)
from dfqbench.testing.context import ToyContext
from dfqbench.testing.toys import toy_network

if TYPE_CHECKING:
    from dfqbench.plugins import LoadedOffer, Plugins

BATCH = 6
"""Images of a drawn batch; neither a power of two nor the toy networks' number of classes."""
LIVE_STEPS = 3
"""Updates of a live source before it is drawn from."""


@dataclass
class Run:
    """One run of `synthesize`, with the context that holds its reports."""

    teacher: nn.Module
    source: SampleSource
    ctx: ToyContext


class MethodUnderTest(PluginUnderTest):
    """A method, with runs that the checks share.

    Raises:
        UsageError: no plugin offers the name.
    """

    def __init__(self, plugins: Plugins, name: str, limit: float = DEFAULT_LIMIT) -> None:
        super().__init__(plugins, name, limit)
        if name not in plugins.methods:
            plugins.method_class(name)  # raises the reason: unknown, or broken

    @property
    def offer(self) -> LoadedOffer:
        """The method's offer."""
        return self.plugins.methods[self.name]

    @property
    def plugin_class(self) -> type[Method]:
        """The method's class."""
        return self.plugins.method_class(self.name)

    def instance(self) -> Method:
        """Return the method with its default parameters."""
        with plugin_code("its constructor", "take the parameters and keep them: `super().__init__(params)`"):
            return self.plugin_class(build_params(self.plugin_class.params_type, {}, self.name))

    def context(self, seed: int = 0, **changes: Any) -> ToyContext:
        """Return a context for a run of `synthesize`, with some of its fields changed."""
        bits = parse_scheme("w4a4@gdfq") if self.plugin_class.depends_on_bits else None
        return dataclasses.replace(ToyContext(budget=BUDGET, root_seed=seed, bits=bits), **changes)

    def synthesized(self, ctx: ToyContext | None = None, teacher: nn.Module | None = None) -> Run:
        """Run `synthesize` as the host does: global generators are seeded, and restored afterwards."""
        ctx = ctx or self.context()
        teacher = toy_network() if teacher is None else teacher
        method = self.instance()
        with plugin_code("synthesize"), seeded(ctx.seed("synthesis", "global")):
            return Run(teacher, method.synthesize(teacher, ctx), ctx)

    def drawn(self, run: Run, size: int = BATCH) -> Batch:
        """Draw a batch; a live source learns a few steps first."""
        with plugin_code("the source"), seeded(run.ctx.seed("drawing")):
            if is_live(run.source):
                for _ in range(LIVE_STEPS):
                    run.source.train_step(size)
            return run.source.sample(size)

    def quantized(self, run: Run, label: str, scheme: Scheme, ctx: ToyContext | None = None) -> nn.Module:
        """Return the student of the shared quantizer `label`, or with an empty label of the method's own `quantize`."""
        quantizer = make_quantizer(self.plugins, label or self.plugin_class.quantizer)
        ctx = ctx or ToyContext(card=run.ctx.card, budget=run.ctx.budget, root_seed=run.ctx.root_seed)
        ctx.bits, ctx.shared = scheme, quantizer.quantize
        what = f"quantizer '{label}' with its source" if label else "quantize"
        with plugin_code(what), seeded(ctx.seed("quantization", "global")):
            quantize = quantizer.quantize if label else self.instance().quantize
            return checked_student(quantize(run.teacher, run.source, ctx), what)

    def run_once(self, workdir: Path) -> None:
        """Synthesize, draw and quantize."""
        run = self.synthesized(ctx=self.context(fixed_workdir=workdir))
        self.drawn(run)
        self.quantized(run, "", parse_scheme("w4a4@gdfq"))

    @cached_property
    def first(self) -> Run:
        """A run that several checks read and none changes."""
        return self.synthesized()

    @cached_property
    def students(self) -> Mapping[str, nn.Module]:
        """Students by `quantizer scheme`: the method's own, and one of every built-in quantizer and protocol."""
        from dfqbench.quantizers import BUILTIN

        students = {}
        for label in ("", *(offer.name for offer in BUILTIN)):
            quantizer = self.plugins.quantizer_class((label or self.plugin_class.quantizer).partition(":")[0])
            for name in schemes_for(quantizer, ("w4a4@gdfq", "w3a5@deploy")):
                scheme = parse_scheme(name)
                bits = scheme if self.plugin_class.depends_on_bits else None
                ctx = self.context(bits=bits, budget=SHORTEST)
                student = self.quantized(self.synthesized(ctx), label, scheme)
                students[f"{label or 'its own quantize'} under {name}"] = student
        return students
