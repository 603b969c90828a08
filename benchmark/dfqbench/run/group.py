"""A job and its partners in one worker: cells that differ in the bits only, from one source."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from dfqbench.api.batch import serves_many
from dfqbench.run.attempt import Attempt
from dfqbench.run.ending import told
from dfqbench.run.flag import Stopped
from dfqbench.run.rng import capture, restore, same

if TYPE_CHECKING:
    from dfqbench.api.batch import Batch, SampleSource
    from dfqbench.run.channel import Sink
    from dfqbench.run.flag import StopFlag
    from dfqbench.run.job import Job
    from dfqbench.run.training import Timeline

How = Literal["alone", "in turn", "in lockstep"]
"""`in turn`: one after the other, each from the saved source. `in lockstep`: in one loop, from one live source."""
FOR_ALL = frozenset({"result", "error", "stopped", "warning"})
"""Events of a partner that concern the parent; progress and phases are those of the first."""


class PartnerSink:
    """A partner's line to the parent.

    Args:
        channel: the worker's.
        number: of the partner.
    """

    def __init__(self, channel: Sink, number: int) -> None:
        self._channel = channel
        self._number = number

    def send(self, event: str, **data: Any) -> None:
        """Sends one event, wrapped."""
        if event in FOR_ALL:
            self._channel.send("partner", number=self._number, line={"event": event, **data})


def run_group(leader: Attempt, job: Job, channel: Sink, flag: StopFlag) -> None:
    """Brings an attempt that has its source to its end, and its partners with it where that is possible.

    Args:
        leader: an attempt that has begun.
        job: its job, which names the partners.
        channel: the line to the parent.
        flag: whether to stop.
    """
    how = _how(leader, job)
    channel.send("together", how=how, partners=len(job.partners))
    sinks = [PartnerSink(channel, number) for number in range(len(job.partners) if how != "alone" else 0)]
    if how == "in lockstep":
        loop = SharedLoop(leader, channel)
        for number, sink in enumerate(sinks):
            loop.add(Attempt(_begun(job, number), sink, flag, leader), sink)
        loop.run()
        return
    channel.send("result", **leader.finish())
    for number, sink in enumerate(sinks):
        partner = Attempt(_begun(job, number), sink, flag, leader)
        with told(partner, sink):
            partner.begin()
            sink.send("result", **partner.finish())


def _begun(job: Job, number: int) -> Job:
    return replace(job.partner(number), started=time.monotonic())


def _how(leader: Attempt, job: Job) -> How:
    if not job.partners or job.probe_seconds or not leader.shares_its_quantizer:
        return "alone"
    if hasattr(leader.source, "train_step"):
        return "in lockstep" if serves_many(leader.source) and leader.makes_many else "alone"
    # A training of its own is worth a process of its own: others need not wait for it, and cannot lose it.
    return "alone" if leader.trains or not leader.has_saved_source else "in turn"


class OutOfStepError(BaseException):
    """Ends the part of a student that cannot be made together with the others."""


@dataclass(slots=True)
class _Member:
    """An attempt of a shared loop, its line to the parent, and what is closed when it ends."""

    attempt: Attempt
    sink: Sink
    stack: ExitStack = field(default_factory=ExitStack)


class SharedLoop:
    """One loop over the students of several attempts (`Quantizer.quantize_many`).

    A student's part of a step has the global random generators that it would have alone: each part begins with those
    that the source left. A student whose part ends with others than the first one's leaves the loop.

    Args:
        leader: the attempt that has made the source.
        channel: its line to the parent.
    """

    def __init__(self, leader: Attempt, channel: Sink) -> None:
        self._leader = leader
        self._counters = leader.counters
        # Those that have neither failed nor left, by number.
        self._members = {0: _Member(leader, channel)}
        self._working = False
        # Of the present step: whose parts are done, and the generators before and after each.
        self._done: set[int] = set()
        self._before: dict[str, Any] = {}
        self._after: dict[str, Any] | None = None

    def add(self, attempt: Attempt, sink: Sink) -> None:
        """Adds a partner, unless it has to run by itself."""
        with told(attempt, sink):
            if attempt.join(self._leader):
                self._members[len(self._members)] = _Member(attempt, sink)
            else:
                attempt.keeper.leave()
                sink.send("warning", message="its state is not that of the other cells; it runs by itself")

    def run(self) -> None:
        """Makes the students, and sends how each of them ends."""
        leader, members = self._leader, dict(self._members)
        self._phase = leader.costs.clock.shared_phase("quantization", "synthesis", len(members))
        source = leader.metered(self, self._timelines)
        try:
            for member in members.values():
                member.attempt.share([other.attempt for other in members.values()])
            contexts = [
                member.attempt.open_quantization(partial(self._for_student, number))
                for number, member in members.items()
            ]
            for number, member in members.items():
                member.stack.enter_context(member.attempt.costs.clock.part_of(self._phase, number))
            self._phase.restart()
            with leader.quantizing(contexts[0]):
                self._share_counts()
                students = list(leader.quantizer.quantize_many(leader.teacher, source, contexts))
        except OutOfStepError:
            return
        except (Exception, Stopped) as error:
            for number in list(self._members):
                self._end(number, error)
            return
        last = _SampledOnce(leader.source)
        for number, member in list(self._members.items()):
            self._end(number)
            with told(member.attempt, member.sink):
                student = students[number] if number < len(students) else None
                member.attempt.source = last
                member.sink.send("result", **member.attempt.keep(member.attempt.checked(student, source)))

    def _for_student(self, number: int, act: Callable[[], Any]) -> Any:
        """Implements `Context.for_student`."""
        if number not in self._members:
            return None
        if number in self._done or not self._done:
            self._done, self._before, self._after = set(), capture(), None
        else:
            restore(self._before)
        self._done.add(number)
        self._counters.present, self._working = [self._members[number].attempt.costs.counts], True
        try:
            with self._phase.student(number):
                result = act()
            self._check_generators()
        except OutOfStepError:
            message = "its steps differ from those of the other cells; it runs by itself"
            self._members[number].sink.send("warning", message=message)
            self._end(number)
        except Exception as error:
            if len(self._members) == 1:
                raise
            self._end(number, error)
        else:
            return result
        finally:
            self._working = False
            self._share_counts()
        restore(self._after or self._before)
        return None

    def _check_generators(self) -> None:
        after = capture()
        if self._after is None:
            self._after = after
        elif not same(after, self._after):
            raise OutOfStepError

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Times a call of the source, with which a step begins.

        Raises:
            OutOfStepError: a student calls the source in its own part, which would change it for the others.
        """
        if self._working and len(self._members) > 1:
            raise OutOfStepError
        self._done.clear()
        with self._phase.inside():
            yield

    def _share_counts(self) -> None:
        self._counters.present = [member.attempt.costs.counts for member in self._members.values()]

    def _timelines(self) -> list[Timeline]:
        return [line for member in self._members.values() for line in member.attempt.timelines()]

    def _end(self, number: int, error: BaseException | None = None) -> None:
        """Takes a member out of the loop, and sends its error, if any."""
        member = self._members.pop(number)
        member.attempt.keeper.leave()
        member.stack.close()
        self._phase.payer = min(self._members, default=0)
        if error is not None:
            with told(member.attempt, member.sink):
                raise error


class _SampledOnce:
    """A source that gives all the same images."""

    def __init__(self, source: SampleSource) -> None:
        self._source = source
        self._batch: Batch | None = None

    def sample(self, size: int) -> Batch:
        """Draws images, once."""
        if self._batch is None:
            self._batch = self._source.sample(size)
        return self._batch

    def state_dict(self) -> dict[str, Any]:
        """State of the source."""
        return self._source.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the source."""
        self._source.load_state_dict(state)
