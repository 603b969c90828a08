"""Run a job: its first cell, and its other members, which differ in the bits only, if one source can serve all."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from dfqbench.api.batch import Batch, serves_many
from dfqbench.api.method import Method, Quantizer
from dfqbench.run.execute.cancellation import StopFlag, Stopped
from dfqbench.run.execute.events import (
    Event,
    EventSink,
    Failed,
    Finished,
    Interrupted,
    MemberEvent,
    OfMember,
    SharedJob,
    Sharing,
    Warned,
)
from dfqbench.run.execute.failure import describe_failure, is_interrupt
from dfqbench.run.execute.job import Job
from dfqbench.run.worker.attempt import Attempt
from dfqbench.run.worker.confinement import LANDLOCK
from dfqbench.run.worker.device_setup import equal_rng_states, get_rng_state, set_rng_state
from dfqbench.run.worker.probe import ProbeDone

REFUSED = "plugin code may read its own files and installed packages only; --unconfined lifts that and flags the record"
"""Hint of an error after the kernel has refused a file."""


def run_job(job: Job, events: EventSink, flag: StopFlag | None = None) -> None:
    """Run a job in this process, and send how each cell ends as `Finished`, `Failed` or `Interrupted`.

    A member's events are wrapped in `MemberEvent`; a member without such an event has to run in a worker of its own.
    """
    flag = flag or StopFlag()
    first = Attempt(job, events, flag)
    with report_failure(first, events):
        first.begin()
        sharing = _sharing(first, job)
        events.send(SharedJob(sharing, len(job.members)))
        if sharing is Sharing.ONE_LOOP:
            loop = SharedLoop(first, events, Path(job.source).name)
            for member, member_events in _members(first, job, events, flag):
                loop.add(member, member_events)
            loop.run()
            return
        events.send(Finished(first.finish()))
        if sharing is Sharing.ONE_BY_ONE:
            for member, member_events in _members(first, job, events, flag):
                with report_failure(member, member_events):
                    member.begin()
                    member_events.send(Finished(member.finish()))


def _members(first: Attempt, job: Job, events: EventSink, flag: StopFlag) -> Iterator[tuple[Attempt, EventSink]]:
    for number in range(len(job.members)):
        member_events = _MemberEvents(events, number)
        member_job = replace(job.of_member(number), started=time.monotonic())
        yield Attempt(member_job, member_events, flag, first), member_events


@dataclass(frozen=True, slots=True)
class _MemberEvents:
    """Send the events of a member that concern the parent; progress and phases are those of the job's first cell."""

    events: EventSink
    number: int

    def send(self, event: Event) -> None:
        if isinstance(event, OfMember):
            self.events.send(MemberEvent(self.number, event))


def _sharing(first: Attempt, job: Job) -> Sharing:
    # A method with a `quantize` of its own makes its student alone.
    method_cls = type(first.method)
    own_quantize = job.own_quantize and issubclass(method_cls, Method) and method_cls.quantize is not Method.quantize
    if not job.members or job.probe_seconds or own_quantize:
        return Sharing.ALONE
    if hasattr(first.source, "train_step"):
        return Sharing.ONE_LOOP if serves_many(first.source) and makes_many(first.quantizer) else Sharing.ALONE
    # A quantizer that trains is worth a process of its own: other cells need not wait for it, and survive its failure.
    return Sharing.ALONE if first.quantizer.trains or not first.has_saved_source else Sharing.ONE_BY_ONE


def makes_many(quantizer: Quantizer) -> bool:
    """Check that a quantizer defines `quantize_many`, and that no class derived from that one overrides `quantize`."""
    definitions = {"quantize", "quantize_many"}
    owner = next(cls for cls in type(quantizer).__mro__ if not definitions.isdisjoint(vars(cls)))
    return owner is not Quantizer and "quantize_many" in vars(owner)


@contextmanager
def report_failure(attempt: Attempt, events: EventSink) -> Iterator[None]:
    """Send the exception that ends an attempt in the block, `SystemExit` as well, instead of raising it."""
    try:
        yield
    except ProbeDone:
        pass
    except Stopped as stopped:
        events.send(Interrupted(stopped.kept, attempt.phase, attempt.step, attempt.accounting.so_far()))
    except BaseException as error:
        if is_interrupt(error):
            raise
        failure = describe_failure(error)
        if attempt.confinement.protection == LANDLOCK and os.strerror(errno.EACCES) in failure.message:
            failure = replace(failure, message=f"{failure.message}; {REFUSED}")
        failed = Failed(
            **asdict(failure),
            phase=attempt.phase,
            step=attempt.step,
            plugin=attempt.plugin,
            so_far=attempt.accounting.so_far(),
        )
        events.send(failed)


class _DivergedError(BaseException):
    """End a student's part that cannot be made together with those of the others."""


@dataclass(slots=True)
class _Member:
    attempt: Attempt
    events: EventSink
    stack: ExitStack = field(default_factory=ExitStack)
    """Closed when the member leaves the loop."""


class SharedLoop:
    """One loop over the students of several attempts (`Quantizer.quantize_many`).

    Each student's part of a step begins with the global random generators as the source left them, as it would alone. A
    student whose part ends with other generators than the first student's leaves the loop.

    Args:
        first: the attempt that has made the source.
        events: receives its events.
        source_id: identity of the source.
    """

    def __init__(self, first: Attempt, events: EventSink, source_id: str) -> None:
        self._first = first
        self._source_id = source_id
        # Members that have neither failed nor left, by number.
        self._members = {0: _Member(first, events)}
        self._in_part = False
        # Of the current step: students whose parts are done, and the random generators before and after each part.
        self._done: set[int] = set()
        self._before: dict[str, Any] = {}
        self._after: dict[str, Any] | None = None

    def add(self, attempt: Attempt, events: EventSink) -> None:
        """Add a member, unless it has to run by itself."""
        with report_failure(attempt, events):
            if attempt.join(self._first):
                self._members[len(self._members)] = _Member(attempt, events)
            else:
                attempt.checkpointer.leave()
                events.send(Warned("its state is not that of the other cells; it runs by itself"))

    def run(self) -> None:
        """Make the students, and send how each attempt ends."""
        first, members = self._first, dict(self._members)
        self._phase = first.accounting.clock.shared_phase("quantization", "synthesis", len(members))
        source = first.instrumented_source(self._source_call, self._keep_training_images)
        try:
            attempts = [member.attempt for member in members.values()]
            for attempt in attempts:
                attempt.accounting.share(self._source_id, [member.accounting for member in attempts])
            contexts = [
                attempt.open_quantization(partial(self._run_part, number)) for number, attempt in enumerate(attempts)
            ]
            for number, member in members.items():
                member.stack.enter_context(member.attempt.accounting.clock.part_of(self._phase, number))
            self._phase.restart()
            with first.quantizing(contexts[0]):
                self._count_for_all()
                students = list(first.quantizer.quantize_many(first.teacher, source, contexts))
        except _DivergedError:
            return
        except BaseException as error:
            for number in list(self._members):
                self._end(number, error)
            return
        # Images are drawn once, as an attempt alone would do.
        sample = cache(first.source.sample)
        for number, member in list(self._members.items()):
            self._end(number)
            with report_failure(member.attempt, member.events):
                student = students[number] if number < len(students) else None
                member.events.send(Finished(member.attempt.save(student, source, sample)))

    def _run_part(self, number: int, act: Callable[[], Any]) -> Any:
        """Implement `Context.for_student`."""
        if number not in self._members:
            return None
        if number in self._done or not self._done:
            self._done, self._before, self._after = set(), get_rng_state(), None
        else:
            set_rng_state(self._before)
        self._done.add(number)
        member = self._members[number]
        self._first.counts.active, self._in_part = [member.attempt.accounting.counts], True
        try:
            with self._phase.student(number):
                result = act()
            self._check_generators()
        except _DivergedError:
            member.events.send(Warned("its steps differ from those of the other cells; it runs by itself"))
            self._end(number)
        except BaseException as error:
            if len(self._members) == 1 or isinstance(error, Stopped):
                raise
            self._end(number, error)
        else:
            return result
        finally:
            self._in_part = False
            self._count_for_all()
        set_rng_state(self._after or self._before)
        return None

    def _check_generators(self) -> None:
        after = get_rng_state()
        if self._after is not None and not equal_rng_states(after, self._after):
            raise _DivergedError
        self._after = after

    @contextmanager
    def _source_call(self) -> Iterator[None]:
        """Time a call of the source, with which a step begins."""
        # A student that calls the source in its own part would change it for the others.
        if self._in_part and len(self._members) > 1:
            raise _DivergedError
        self._done.clear()
        with self._phase.source_call():
            yield

    def _count_for_all(self) -> None:
        self._first.counts.active = [member.attempt.accounting.counts for member in self._members.values()]

    def _keep_training_images(self, batch: Batch) -> None:
        for member in self._members.values():
            member.attempt.keep_training_images(batch)

    def _end(self, number: int, error: BaseException | None = None) -> None:
        """Remove a member from the loop, and send its error, if any."""
        member = self._members.pop(number)
        member.attempt.checkpointer.leave()
        member.stack.close()
        self._phase.payer = min(self._members, default=0)
        if error is not None:
            with report_failure(member.attempt, member.events):
                raise error
