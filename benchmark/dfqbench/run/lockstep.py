"""Lockstep: one live source feeds the students of several cells, each of which sees what it would see alone.

The cells take turns, one thread each, and only the one whose turn it is runs. A call of the source is made by the
first of them once all have arrived at it; the others are handed the same batch, and their global random generators
are moved as if they had made the call. A cell that asks for anything else than the first one did leaves the group: it
has to run by itself.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dfqbench.api.batch import Batch
from dfqbench.run.flag import StopFlag
from dfqbench.run.rng import capture, restore

if TYPE_CHECKING:
    from torch import nn

    from dfqbench.api.batch import LiveSource
    from dfqbench.run.meter import Counts


class OutOfStepError(BaseException):
    """Ends an attempt that cannot be fed together with the others; no plugin's `except Exception` can hold it."""


class Turns:
    """Hands the turn round among members, in order.

    Each member's global random generators are its own: they are put aside while others have the turn.

    Attributes:
        holder: whose turn it is.
        waited: seconds that each has waited.

    Args:
        members: how many there are; they are numbered from 0.
    """

    def __init__(self, members: int) -> None:
        self.holder = 0
        self._gates = [threading.Semaphore(0) for _ in range(members)]
        self._left = list(range(members))
        self.waited = [0.0] * members

    @property
    def first(self) -> int:
        """The first member that is still there."""
        return self._left[0]

    def run(self, acts: Sequence[Callable[[], None]]) -> None:
        """Runs what each member does in a thread of its own, and waits for all of them.

        Args:
            acts: one for each member, in order; an exception ends its member only.
        """

        def member(number: int) -> None:
            self._wait(number)
            try:
                acts[number]()
            finally:
                self.leave(number)

        threads = [threading.Thread(target=member, args=(number,), daemon=True) for number in self._left]
        for thread in threads:
            thread.start()
        self._give(self._left[0])
        for thread in threads:
            thread.join()

    def pass_on(self, member: int) -> None:
        """Gives the turn to the next member, and waits until it comes back."""
        after = self._next(member)
        if after == member:
            return
        generators = capture()
        self._give(after)
        self._wait(member)
        restore(generators)

    def leave(self, member: int) -> None:
        """Gives the turn away for good."""
        after = self._next(member)
        self._left.remove(member)
        if self._left:
            self._give(after)

    def _give(self, member: int) -> None:
        self.holder = member
        self._gates[member].release()

    def _wait(self, member: int) -> None:
        begin = time.monotonic()
        self._gates[member].acquire()
        self.waited[member] += time.monotonic() - begin

    def _next(self, member: int) -> int:
        place = self._left.index(member)
        return self._left[(place + 1) % len(self._left)]


class CommonFlag(StopFlag):
    """The wish to stop as one member sees it: the same for all during one step.

    The first member looks at the real one; the others see what it saw.

    Args:
        real: of the process.
        turns: knows the first member.
        member: whose view this is.
        seen: what the first has seen; one dictionary for all.
    """

    def __init__(self, real: StopFlag, turns: Turns, member: int, seen: dict[str, Any]) -> None:
        self._real = real
        self._turns = turns
        self._member = member
        self._seen = seen

    @property
    def asked(self) -> bool:  # type: ignore[override]
        """Whether to stop."""
        if self._turns.first == self._member:
            self._seen["asked"] = self._real.asked
        return bool(self._seen.get("asked", False))

    def now(self) -> float:
        """Monotonic seconds, which stand still for all but the first member."""
        if self._turns.first == self._member:
            self._seen["now"] = time.monotonic()
        return float(self._seen.get("now") or time.monotonic())


@dataclass(slots=True)
class _Call:
    """The newest call of the source.

    Attributes:
        wish: what was asked for.
        before: the global generators when it was made.
        after: the same when it was done.
        counts: what it added to the counts of the member that made it.
        batch: what it gave, or None.
        error: what it raised, or None.
    """

    wish: tuple[Any, ...]
    before: dict[str, Any]
    after: dict[str, Any]
    counts: dict[str, int]
    batch: Batch | None
    error: Exception | None


class CommonSource:
    """A live source that several members call in turn.

    Args:
        source: it must not look at the student (`needs_student` is False).
        turns: who may run.
        counts: each member's own.
        aside: what each member enters while others have the turn.
    """

    def __init__(
        self,
        source: LiveSource,
        turns: Turns,
        counts: Sequence[Counts],
        aside: Sequence[Callable[[], AbstractContextManager[object]]],
    ) -> None:
        self.source = source
        self._turns = turns
        self._counts = counts
        self._aside = aside
        self._made = 0
        self._had = [0] * len(counts)
        self._newest: _Call | None = None

    def call(self, member: int, wish: tuple[Any, ...], act: Callable[[], Batch | None]) -> Batch | None:
        """Makes a call, or repeats its result.

        Args:
            member: who asks.
            wish: what for; all members must ask for the same, in the same order.
            act: makes the call.

        Raises:
            OutOfStepError: the member asked for something else than the first one did.
        """
        made = False
        while self._had[member] == self._made:
            with self._aside[member]():
                self._turns.pass_on(member)
            # With the turn back, all others have arrived at the same call.
            if self._had[member] == self._made and self._turns.first == member:
                self._newest = self._make(member, wish, act)
                self._made += 1
                made = True
        self._had[member] += 1
        newest = self._newest
        if newest is None or self._had[member] != self._made:
            raise OutOfStepError
        if not made:
            self._repeat(member, wish, newest)
        if newest.error is not None:
            raise newest.error
        return None if newest.batch is None else _copied(newest.batch)

    def _repeat(self, member: int, wish: tuple[Any, ...], newest: _Call) -> None:
        """Moves a member to where it would be had it made the call itself."""
        if not same(newest.wish, wish) or not same(capture(), newest.before):
            raise OutOfStepError
        restore(newest.after)
        self._counts[member].add(newest.counts)

    def _make(self, member: int, wish: tuple[Any, ...], act: Callable[[], Batch | None]) -> _Call:
        counts = self._counts[member]
        before, counted = capture(), counts.as_dict()
        batch, error = None, None
        try:
            batch = act()
        except Exception as raised:
            error = raised
        added = {name: count - counted[name] for name, count in counts.as_dict().items()}
        return _Call(wish, before, capture(), added, batch, error)


class MemberSource:
    """The common live source as one member sees it.

    Args:
        common: what all share.
        member: whose view this is.
    """

    needs_student = False

    def __init__(self, common: CommonSource, member: int) -> None:
        self._common = common
        self._member = member

    def sample(self, size: int) -> Batch:
        """Draws images."""
        return self._batch(("sample", size), lambda: self._common.source.sample(size))

    def train_step(self, size: int, student: nn.Module | None = None) -> Batch:  # noqa: ARG002 - see needs_student
        """Trains the generator once for all members; no student is shown to it."""
        return self._batch(("train_step", size), lambda: self._common.source.train_step(size))

    def state_dict(self) -> dict[str, Any]:
        """State of the source, which is at the member's own step whenever the member runs."""
        return self._common.source.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the source once; every member must have the same state."""
        self._common.call(self._member, ("load", state), lambda: self._common.source.load_state_dict(state))

    def _batch(self, wish: tuple[Any, ...], act: Callable[[], Batch]) -> Batch:
        found = self._common.call(self._member, wish, act)
        if found is None:
            raise OutOfStepError
        return found


def can_be_common(source: object) -> bool:
    """Whether a live source says that it never looks at a student, so that one serves several."""
    return getattr(source, "needs_student", True) is False and not hasattr(source, "__len__")


def same(one: Any, other: Any) -> bool:
    """Whether two trees of tensors and plain data are equal bit for bit."""
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, Mapping):
        return isinstance(other, Mapping) and one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and bool(one == other)


def _copied(batch: Batch) -> Batch:
    """The batch in memory of its own: what one member does to it must not reach the next."""

    def copied(part: Tensor | None) -> Tensor | None:
        return None if part is None else part.clone()

    return Batch(batch.images.clone(), copied(batch.labels), copied(batch.teacher_logits))
