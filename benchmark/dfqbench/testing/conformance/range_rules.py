"""The range rule under test, and its checks: the observer's ranges, its state, and students calibrated by it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dfqbench.api.errors import unknown_name
from dfqbench.quant import Observer, parse_scheme
from dfqbench.quant.observers import make_observer
from dfqbench.testing.conformance.findings import Fault
from dfqbench.testing.conformance.plugin_under_test import as_saved, plugin_code, same
from dfqbench.testing.conformance.quantizer_under_test import SCHEMES, fixed_source
from dfqbench.testing.context import ToyContext
from dfqbench.testing.toys import toy_network

if TYPE_CHECKING:
    from dfqbench.plugins import Plugins

BATCHES = 3
"""Batches that an observer gets."""


class RangeRuleUnderTest:
    """A range rule that follows batches, by its name or `name:number`.

    Raises:
        UsageError: no plugin offers the name.
    """

    def __init__(self, plugins: Plugins, name: str) -> None:
        self.name = name
        if name.partition(":")[0] not in plugins.range_rules:
            raise unknown_name("range rule", name, plugins.range_rules)

    def observer(self, scheme: str = SCHEMES[0]) -> Observer:
        """Return a new observer, started as a student starts it."""
        activations, bits = parse_scheme(scheme).protocol.activations, parse_scheme(scheme).a_bits
        with plugin_code("its constructor", "take no argument, or override `for_activation`"):
            observer = make_observer(self.name, activations, bits)
            observer.start(torch.zeros(()), torch.zeros(()))
        return observer

    def observe(self, observer: Observer, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the range after a batch."""
        with plugin_code("forward"):
            ends = observer(x)
        if not isinstance(ends, tuple) or len(ends) != 2 or not all(isinstance(end, Tensor) for end in ends):
            raise Fault(f"forward returned a {type(ends).__name__}", "return two tensors, low and high")
        return ends[0], ends[1]

    @cached_property
    def students(self) -> Mapping[str, nn.Module]:
        """A student that was calibrated by the rule under every scheme, from as many batches as it gets here."""
        students = {}
        for scheme in SCHEMES:
            student = ToyContext(bits=parse_scheme(scheme)).prepare(toy_network())
            images = fixed_source().sample(BATCHES * 16).images
            with plugin_code("calibration"), torch.no_grad(), student.observing(self.name):
                for batch in images.chunk(BATCHES):
                    student(batch)
            students[f"calibration under {scheme}"] = student
        return students


def contract(rule: RangeRuleUnderTest) -> None:
    """Check that the import string names a subclass of `Observer`, and that one can be made."""
    rule.observer()


def ranges(rule: RangeRuleUnderTest) -> None:
    """Check ranges of several activations: two 0-d tensors, finite, in order; the batch stays as it was."""
    random = torch.Generator().manual_seed(0)
    values = torch.randn(BATCHES, 8, 4, 6, 6, generator=random)
    for what, batches in (("normal values", values), ("values after ReLU", values.relu()), ("zeros", values * 0)):
        observer = rule.observer()
        for batch in batches:
            x = batch.clone().requires_grad_()
            with torch.no_grad():
                low, high = rule.observe(observer, x)
            if low.shape != () or high.shape != ():
                raise Fault(f"its range of {what} has the shapes {tuple(low.shape)}, {tuple(high.shape)}", "return 0-d")
            if not bool(torch.isfinite(torch.stack([low, high])).all()) or bool(low > high):
                raise Fault(f"its range of {what} is {float(low)} to {float(high)}", "return finite ends, low <= high")
            if not torch.equal(x, batch):
                raise Fault(f"forward changed {what}, which the network goes on with", "compute on a copy")


def state(rule: RangeRuleUnderTest) -> None:
    """Check that an observer which goes on from a saved state gives the ranges of the one that saved it."""
    batches = torch.randn(2 * BATCHES, 8, 4, 6, 6, generator=torch.Generator().manual_seed(1)).chunk(2)
    first, second = rule.observer(), rule.observer()
    for batch in batches[0]:
        rule.observe(first, batch)
    with plugin_code("load_state_dict"):
        second.load_state_dict(as_saved(first.state_dict(), "an observer's state"))
    for batch in 0.5 * batches[1]:  # so that earlier batches matter to a running extreme
        if not same(rule.observe(first, batch), rule.observe(second, batch)):
            raise Fault(
                "an observer that goes on from a saved state gives other ranges",
                "keep everything that the next batch reads in buffers: self.register_buffer(name, tensor)",
            )
