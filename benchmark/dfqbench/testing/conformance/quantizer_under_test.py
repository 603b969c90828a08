"""The quantizer under test, and its runs on a toy network with toy sources, as the host would run it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from dfqbench.api import Quantizer, SampleSource
from dfqbench.quant import parse_scheme
from dfqbench.run.worker.device_setup import seeded
from dfqbench.synth.source import FixedSource
from dfqbench.testing.conformance.plugin_under_test import (
    BUDGET,
    DEFAULT_LIMIT,
    PluginUnderTest,
    checked_student,
    make_quantizer,
    plugin_code,
    schemes_for,
)
from dfqbench.testing.context import ToyContext
from dfqbench.testing.toys import ToySource, toy_images, toy_network

if TYPE_CHECKING:
    from dfqbench.plugins import LoadedOffer, Plugins

SCHEMES = ("w4a4@gdfq", "w3a5@deploy", "w4a32@gdfq")
"""Schemes of the students: two protocols, and weights alone."""
IMAGES = 64
"""Images of the fixed source."""


class QuantizerUnderTest(PluginUnderTest):
    """A quantizer, with students that the checks share.

    Raises:
        UsageError: no plugin offers the name.
    """

    def __init__(self, plugins: Plugins, name: str, limit: float = DEFAULT_LIMIT) -> None:
        super().__init__(plugins, name, limit)
        if name not in plugins.quantizers:
            plugins.quantizer_class(name)  # raises the reason: unknown, or broken

    @property
    def offer(self) -> LoadedOffer:
        """The quantizer's offer."""
        return self.plugins.quantizers[self.name]

    @property
    def plugin_class(self) -> type[Quantizer]:
        """The quantizer's class."""
        return self.plugins.quantizer_class(self.name)

    def instance(self) -> Quantizer:
        """Return the quantizer with its default recipe."""
        with plugin_code("its constructor", "take the parameters and keep them: `super().__init__(params)`"):
            return make_quantizer(self.plugins, self.name)

    @property
    def schemes(self) -> list[str]:
        """Those of `SCHEMES` that it can work under."""
        return schemes_for(self.plugin_class, SCHEMES)

    def context(self, scheme: str = "", **changes: Any) -> ToyContext:
        """Return a context for a run under a scheme, by default the first of its own."""
        return ToyContext(budget=BUDGET, bits=parse_scheme(scheme or self.schemes[0]), **changes)

    def quantized(
        self, source: SampleSource | None = None, ctx: ToyContext | None = None, teacher: nn.Module | None = None
    ) -> nn.Module:
        """Return a student; global generators are seeded before, as in a run, and restored afterwards."""
        ctx, quantizer = ctx or self.context(), self.instance()
        with plugin_code("quantize"), seeded(ctx.seed("quantization", "global")):
            student = quantizer.quantize(teacher or toy_network(), source or fixed_source(), ctx)
        return checked_student(student, "quantize")

    def run_once(self, workdir: Path) -> None:
        """Make one student."""
        self.quantized(ctx=self.context(fixed_workdir=workdir))

    @cached_property
    def students(self) -> Mapping[str, nn.Module]:
        """A student of a fixed and of a live source under every scheme."""
        sources: dict[str, Callable[[], SampleSource]] = {"a fixed source": fixed_source, "a live source": ToySource}
        return {
            f"{what} under {scheme}": self.quantized(source(), self.context(scheme))
            for scheme in self.schemes
            for what, source in sources.items()
        }


def fixed_source() -> FixedSource:
    """Return a source of a few toy images."""
    return FixedSource(toy_images(IMAGES))
