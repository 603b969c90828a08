"""Jobs that share a worker: cells that differ in the bits only, from one source."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from dfqbench.api.batch import serves_many
from dfqbench.api.method import Quantizer
from dfqbench.run.execute.events import Event, EventSink, Finished, MemberEvent, OfMember, SharedJob, Sharing, Warned
from dfqbench.run.worker.attempt import Attempt
from dfqbench.run.worker.exit import report_failure
from dfqbench.run.worker.rng import capture, restore, same
from dfqbench.run.worker.stop_flag import Stopped

if TYPE_CHECKING:
    from dfqbench.api.batch import Batch, SampleSource
    from dfqbench.run.execute.job import Job
    from dfqbench.run.store.training_folder import Timeline
    from dfqbench.run.worker.stop_flag import StopFlag


class MemberEvents:
    """Sends the events of a member that concern the parent; progress and phases are those of the job's first cell.

    Args:
        events: takes the worker's events.
        number: of the member.
    """

    def __init__(self, events: EventSink, number: int) -> None:
        self._events = events
        self._number = number

    def send(self, event: Event) -> None:
        """Sends one event, wrapped."""
        if isinstance(event, OfMember):
            self._events.send(MemberEvent(self._number, event))


def run_group(leader: Attempt, job: Job, events: EventSink, flag: StopFlag) -> None:
    """Finish an attempt that has its source, and the other members of its job where they can share the worker.

    Args:
        leader: an attempt that has begun.
        job: its job, which names the members.
        events: takes the events.
        flag: whether to stop.
    """
    sharing = _sharing(leader, job)
    events.send(SharedJob(sharing, len(job.members)))
    members = [MemberEvents(events, number) for number in range(len(job.members))]
    if sharing is Sharing.ONE_LOOP:
        loop = SharedLoop(leader, events)
        for number, sink in enumerate(members):
            loop.add(Attempt(_begun(job, number), sink, flag, leader), sink)
        loop.run()
        return
    events.send(Finished(leader.finish()))
    if sharing is Sharing.ALONE:
        return
    for number, sink in enumerate(members):
        member = Attempt(_begun(job, number), sink, flag, leader)
        with report_failure(member, sink):
            member.begin()
            sink.send(Finished(member.finish()))


def _begun(job: Job, number: int) -> Job:
    return replace(job.of_member(number), started=time.monotonic())


def _sharing(leader: Attempt, job: Job) -> Sharing:
    if not job.members or job.probe_seconds or not leader.shares_its_quantizer:
        return Sharing.ALONE
    if hasattr(leader.source, "train_step"):
        return Sharing.ONE_LOOP if serves_many(leader.source) and _makes_many(leader.quantizer) else Sharing.ALONE
    # A training of its own is worth a process of its own: others need not wait for it, and cannot lose it.
    return Sharing.ALONE if leader.trains or not leader.has_saved_source else Sharing.ONE_BY_ONE


def _makes_many(quantizer: Quantizer) -> bool:
    """Check that a quantizer defines `quantize_many`, and that no class derived from that one overrides `quantize`."""
    definitions = {"quantize", "quantize_many"}
    owner = next(kind for kind in type(quantizer).__mro__ if not definitions.isdisjoint(vars(kind)))
    return owner is not Quantizer and "quantize_many" in vars(owner)


class OutOfStepError(BaseException):
    """Ends the part of a student that cannot be made together with the others."""


@dataclass(slots=True)
class _Member:
    """An attempt of a shared loop, what takes its events, and what is closed when it ends."""

    attempt: Attempt
    events: EventSink
    stack: ExitStack = field(default_factory=ExitStack)


class SharedLoop:
    """One loop over the students of several attempts (`Quantizer.quantize_many`).

    A student's part of a step has the global random generators that it would have alone: each part begins with those
    that the source left. A student whose part ends with others than the first one's leaves the loop.

    Args:
        leader: the attempt that has made the source.
        events: takes its events.
    """

    def __init__(self, leader: Attempt, events: EventSink) -> None:
        self._leader = leader
        self._counters = leader.counters
        # Those that have neither failed nor left, by number.
        self._members = {0: _Member(leader, events)}
        self._working = False
        # Of the present step: whose parts are done, and the generators before and after each.
        self._done: set[int] = set()
        self._before: dict[str, Any] = {}
        self._after: dict[str, Any] | None = None

    def add(self, attempt: Attempt, events: EventSink) -> None:
        """Adds a member, unless it has to run by itself."""
        with report_failure(attempt, events):
            if attempt.join(self._leader):
                self._members[len(self._members)] = _Member(attempt, events)
            else:
                attempt.keeper.leave()
                events.send(Warned("its state is not that of the other cells; it runs by itself"))

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
            with report_failure(member.attempt, member.events):
                student = students[number] if number < len(students) else None
                member.attempt.source = last
                member.events.send(Finished(member.attempt.keep(member.attempt.checked(student, source))))

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
            self._members[number].events.send(Warned(message))
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
            with report_failure(member.attempt, member.events):
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
