"""Checks of states: what was saved goes on bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from dfqbench.api import is_live
from dfqbench.quant import parse_scheme
from dfqbench.run.worker.device_setup import get_rng_state, set_rng_state
from dfqbench.testing.conformance.fault import Fault
from dfqbench.testing.conformance.method_under_test import BATCH, MethodUnderTest, as_saved, blamed, same
from dfqbench.testing.context import ToyContext


class KeepingContext(ToyContext):
    """Keeps checkpoints with the random generators, as the host does.

    Attributes:
        random: the generators' states at each checkpoint.
        put_back: states that are set when `restored` is read, or None.
    """

    def __init__(self, like: ToyContext, restored: dict[str, Any] | None = None, put_back: Any = None) -> None:
        super().__init__(like.card, like.budget, like.root_seed, like.bits, restored, keep_states=True)
        self.random: list[Any] = []
        self.put_back = put_back

    def __getattribute__(self, name: str) -> Any:
        if name == "restored" and self.__dict__.get("put_back") is not None:
            (own, global_states), self.put_back = self.put_back, None
            self.generator.set_state(own)
            set_rng_state(global_states)
        return super().__getattribute__(name)

    def checkpoint(self, state: Callable[[], dict[str, Any]]) -> None:
        """Keeps the state and the generators."""
        super().checkpoint(state)
        self.random.append((self.generator.get_state(), get_rng_state()))


def resume(method: MethodUnderTest) -> Iterable[str]:
    """A run stopped at any checkpoint and resumed ends as the straight run does."""
    ctx = KeepingContext(method.context())
    expected = method.drawn(method.synthesized(ctx=ctx)).images
    count = len(ctx.saved)
    if not count and len(ctx.steps) > 1:
        yield (
            "synthesize reports steps but no checkpoint, so an interrupted run starts afresh; "
            "call ctx.checkpoint(lambda: {...}) after each step and begin from ctx.restored"
        )
    for index in sorted({0, count // 2, count - 1} if count else ()):
        restored = as_saved(ctx.saved[index], f"checkpoint {index + 1} of {count}")
        again = KeepingContext(method.context(), restored, ctx.random[index])
        found = method.drawn(method.synthesized(ctx=again)).images
        if not same(expected, found):
            raise Fault(
                f"resumed from checkpoint {index + 1} of {count}, synthesize made other images",
                "put everything that the next step reads into the checkpoint (images, optimizer, schedule, counters, "
                "generators of your own) and continue from ctx.restored",
            )
    _resumed_quantization(method)


def _resumed_quantization(method: MethodUnderTest) -> None:
    scheme = parse_scheme("w4a4@gdfq")
    ctx = KeepingContext(method.context())
    straight = method.quantized(method.synthesized(), "", scheme, ctx)
    count = len(ctx.saved)
    if not count:
        return
    index = count // 2
    restored = as_saved(ctx.saved[index], f"checkpoint {index + 1} of {count} of quantize")
    again = KeepingContext(method.context(), restored, ctx.random[index])
    resumed = method.quantized(method.synthesized(), "", scheme, again)
    if not same(straight.state_dict(), resumed.state_dict()):
        what = "the source's state_dict" if is_live(method.first.source) else "quantize's checkpoint"
        raise Fault(
            f"resumed from checkpoint {index + 1} of {count}, quantize made another student",
            f"put everything that the next step reads into {what}: networks, optimizer, counters, random streams",
        )


def state(method: MethodUnderTest) -> Iterable[str]:
    """A source's state survives a `weights_only` load, and a source restored from it hands out the same."""
    run = method.synthesized()
    method.drawn(run)
    with blamed("state_dict"):
        saved = as_saved(run.source.state_dict(), "the source's state_dict")
    expected = method.drawn(run)
    other = method.synthesized(seed=1)
    with blamed("load_state_dict"):
        other.source.load_state_dict(saved)
    # Drawing happens in the host's seeded block, whose seed is the cell's: the other run takes over the first's.
    other.ctx.root_seed = run.ctx.root_seed
    found = method.drawn(other)
    if not (same(expected.images, found.images) and same(expected.labels, found.labels)):
        raise Fault(
            "after load_state_dict(state_dict()) a source hands out other images",
            "put networks, optimizer, counters and the state of every generator into state_dict",
        )
    build = getattr(type(run.source), "from_state", None)
    if is_live(run.source):
        return
    if callable(build):
        with blamed("from_state"):
            rebuilt = build(saved).sample(BATCH).images
        other.source.load_state_dict(saved)
        if not torch.equal(rebuilt, other.source.sample(BATCH).images):
            raise Fault("a source built by from_state hands out other images", "make from_state restore everything")
    elif run.ctx.steps:
        yield (
            "the source has no `from_state`, so its images are paid for again at every bit-width; "
            "return a dfqbench.synth.FixedSource, or give your class a classmethod from_state(state)"
        )
