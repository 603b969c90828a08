"""Checks of saved states: a run goes on from them bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from dfqbench.api import is_live
from dfqbench.quant import parse_scheme
from dfqbench.run.worker.device_setup import get_rng_state, set_rng_state
from dfqbench.testing.conformance.findings import Fault
from dfqbench.testing.conformance.method_under_test import BATCH, MethodUnderTest
from dfqbench.testing.conformance.plugin_under_test import as_saved, plugin_code, same
from dfqbench.testing.context import ToyContext

RESTORED = "build networks and draw first numbers before you read it, for reading sets the random generators back"
"""Advice on `ctx.restored`."""


class KeepingContext(ToyContext):
    """Keep checkpoints together with the random generators, as the host does.

    It is made from a context with the same card, budget, seed and scheme; `generators` are set when `restored` is read.
    """

    def __init__(self, like: ToyContext, restored: dict[str, Any] | None = None, generators: Any = None) -> None:
        super().__init__(like.card, like.budget, like.root_seed, like.bits, restored, keep_states=True)
        self.generators = generators
        self.saved_generators: list[Any] = []

    def __getattribute__(self, name: str) -> Any:
        if name == "restored" and self.__dict__.get("generators") is not None:
            (own, global_states), self.generators = self.generators, None
            self.generator.set_state(own)
            set_rng_state(global_states)
        return super().__getattribute__(name)

    def checkpoint(self, state: Callable[[], dict[str, Any]]) -> None:
        """Keep the state and the generators."""
        super().checkpoint(state)
        self.saved_generators.append((self.generator.get_state(), get_rng_state()))

    def resumed(self, index: int, phase: str = "") -> KeepingContext:
        """Return the context of a run that goes on from a checkpoint, as it is after saving and loading."""
        restored = as_saved(self.saved[index], f"checkpoint {index + 1} of {len(self.saved)}{phase}")
        return KeepingContext(self, restored, self.saved_generators[index])


def resume(method: MethodUnderTest) -> Iterable[str]:
    """Check that a run that is stopped at a checkpoint and resumed ends as the straight run does."""
    ctx = KeepingContext(method.context())
    expected = method.drawn(method.synthesized(ctx)).images
    count = len(ctx.saved)
    if not count and len(ctx.steps) > 1:
        yield (
            "synthesize reports steps but no checkpoint, so an interrupted run starts afresh; "
            "call ctx.checkpoint(lambda: {...}) after each step and begin from ctx.restored"
        )
    for index in sorted({0, count // 2, count - 1} if count else ()):
        if not same(expected, method.drawn(method.synthesized(ctx.resumed(index))).images):
            raise Fault(
                f"resumed from checkpoint {index + 1} of {count}, synthesize made other images",
                "put everything that the next step reads into the checkpoint (images, optimizer, schedule, counters, "
                f"generators of your own) and continue from ctx.restored; {RESTORED}",
            )
    _resume_quantization(method)


def _resume_quantization(method: MethodUnderTest) -> None:
    scheme = parse_scheme("w4a4@gdfq")
    ctx = KeepingContext(method.context())
    straight = method.quantized(method.synthesized(), "", scheme, ctx)
    count = len(ctx.saved)
    if not count:
        return
    index = count // 2
    resumed = method.quantized(method.synthesized(), "", scheme, ctx.resumed(index, " of quantize"))
    if not same(straight.state_dict(), resumed.state_dict()):
        state = "the source's state_dict" if is_live(method.first.source) else "quantize's checkpoint"
        raise Fault(
            f"resumed from checkpoint {index + 1} of {count}, quantize made another student",
            f"put everything that the next step reads into {state}: networks, optimizer, counters, random streams; "
            f"{RESTORED}",
        )


def state(method: MethodUnderTest) -> Iterable[str]:
    """Check that a source restored from its saved state hands out the same images."""
    run = method.synthesized()
    method.drawn(run)
    with plugin_code("state_dict"):
        saved = as_saved(run.source.state_dict(), "the source's state_dict")
    expected = method.drawn(run)
    restored = method.synthesized(method.context(seed=1))
    with plugin_code("load_state_dict"):
        restored.source.load_state_dict(saved)
    restored.ctx.root_seed = run.ctx.root_seed  # the host seeds drawing by the cell
    batch = method.drawn(restored)
    if not (same(expected.images, batch.images) and same(expected.labels, batch.labels)):
        raise Fault(
            "after load_state_dict(state_dict()) a source hands out other images",
            "put networks, optimizer, counters and the state of every generator into state_dict",
        )
    if is_live(run.source):
        return
    build = getattr(type(run.source), "from_state", None)
    if callable(build):
        with plugin_code("from_state"):
            rebuilt = build(saved).sample(BATCH).images
        restored.source.load_state_dict(saved)
        if not torch.equal(rebuilt, restored.source.sample(BATCH).images):
            raise Fault("a source built by from_state hands out other images", "make from_state restore everything")
    elif run.ctx.steps:
        yield (
            "the source has no `from_state`, so its images are paid for again at every bit-width; "
            "return a dfqbench.synth.FixedSource, or give your class a classmethod from_state(state)"
        )
