"""Executors: where the workers and evaluators of a run live. The runner knows nothing of it.

An executor has as many slots as jobs may run at once. The runner calls `run` from one thread a slot and hands over the
attempt's folder; whatever carries the job out (a process here, a batch system, a cluster) runs
`python -m dfqbench.run.worker.main <attempt>/job.json`, reads its events (`EventReader`), and passes a stop on to it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, assert_never

from dfqbench.api.errors import DfqError
from dfqbench.run.execute.cancellation import Stop
from dfqbench.run.execute.events import (
    Event,
    EventError,
    Failed,
    Finished,
    Interrupted,
    MemberEvent,
    PhaseStarted,
    Probed,
    Progress,
    SharedJob,
    SourceReady,
    Warned,
    WorkerStarted,
)
from dfqbench.run.execute.job import Job, Outcome

OnEvent = Callable[[Event], None]


@dataclass(frozen=True, slots=True)
class Slot:
    """A place for one job at a time.

    Attributes:
        number: from 0.
        variables: environment variables that bind a process to the place's device.
        shares_gpu: whether other places are on the same GPU, so that times are not those of a job alone.
    """

    number: int
    variables: Mapping[str, str] = field(default_factory=dict)
    shares_gpu: bool = False


class EvaluatorDiedError(DfqError):
    """The evaluator's process ended in the middle of a request."""


class EvaluationTimeoutError(EvaluatorDiedError):
    """The evaluator's process was ended because an answer took longer than the time limit."""


class EvaluatorClient(Protocol):
    """A slot's evaluator."""

    def ask(self, request: Mapping[str, Any], limit: float = 0.0) -> dict[str, Any]:
        """Sends a request and waits for the answer; an error of the request is part of the answer.

        Args:
            request: what to do.
            limit: seconds until it is given up; 0: never. One in the calling process cannot be given up.

        Raises:
            EvaluatorDiedError: it ended; the next request starts a new one.
            EvaluationTimeoutError: it took longer than the limit, and was ended.
        """
        ...

    def kill(self) -> None:
        """Ends it in the middle of a request."""
        ...

    def close(self) -> None:
        """Ends it."""
        ...


class Executor(Protocol):
    """Carries out jobs."""

    @property
    def slots(self) -> Sequence[Slot]:
        """Places for jobs; their number is that of the jobs that may run at once."""
        ...

    @property
    def in_process(self) -> bool:
        """Whether jobs run in the calling process: the runner then calls from its main thread."""
        ...

    def run(self, job: Job, slot: Slot, on_event: OnEvent, stop: Stop) -> Outcome:
        """Carries a job to its end, within `job.time_limit`; called from several threads, one a slot.

        Args:
            job: what to run; its attempt folder exists.
            slot: where.
            on_event: takes phases, progress and warnings.
            stop: once asked, the job keeps its state and ends as `preempted`.
        """
        ...

    def evaluator(self, slot: Slot) -> EvaluatorClient:
        """The slot's evaluator; the same one each time."""
        ...

    def close(self) -> None:
        """Ends the evaluators."""
        ...


class EventReader:
    """Makes an outcome of the events that a worker sends.

    Args:
        on_event: takes the other events: phases, progress, warnings.
        members: number of cells of the job beside the first.
    """

    def __init__(self, on_event: OnEvent, members: int = 0) -> None:
        self._own: Outcome | None = None
        self._on_event = on_event
        self._members = [EventReader(on_event) for _ in range(members)]

    @property
    def outcome(self) -> Outcome | None:
        """How the job ended, or None: no event has said so yet."""
        return None if self._own is None else replace(self._own, partners=self.members)

    @property
    def members(self) -> list[Outcome | None]:
        """How the members ended, as far as known."""
        return [member.outcome for member in self._members]

    def send(self, event: Event) -> None:
        """Takes one event into account.

        Raises:
            EventError: the job has no member of the event's number.
        """
        match event:
            case Finished(result):
                self._own = Outcome("ok", result=result)
            case Failed():
                error = {name: getattr(event, name) for name in ("type", "message", "step", "plugin", "traceback")}
                self._own = Outcome(event.status, result=event.so_far, error=error | {"phase": str(event.phase)})
            case Interrupted():
                self._own = Outcome("preempted", result=event.so_far, error=_where(event))
            case MemberEvent(number, member_event):
                if not 0 <= number < len(self._members):
                    raise EventError(f"a worker sent an event of member {number} of {len(self._members)}")
                self._members[number].send(member_event)
            case WorkerStarted() | PhaseStarted() | Progress() | Warned() | SourceReady() | SharedJob() | Probed():
                self._on_event(event)
            case _:
                assert_never(event)


def _where(event: Interrupted) -> dict[str, Any]:
    return {"kept": event.kept, "phase": str(event.phase), "step": event.step}


def stopped_error(reason: str, found: Mapping[str, Any] | None, limit: float) -> dict[str, Any]:
    """Describes a job that was stopped.

    Args:
        reason: `timeout` or `preempted`.
        found: what the worker said when it stopped; None: it had to be killed.
        limit: the time limit in seconds.
    """
    why = f"the time limit of {limit:g} s was reached" if reason == "timeout" else "the run was stopped"
    if found is None:
        how = "; the worker did not stop by itself and was killed: the stack in its log says where it was"
    elif found.get("kept"):
        how = "; it goes on from its last step"
    else:
        how = "; it kept no state in this phase, and starts it again"
    kind = "Timeout" if reason == "timeout" else "Preempted"
    place = {key: None if found is None else found.get(key) for key in ("phase", "step")}
    return {"type": kind, "message": why + how, **place, "plugin": None, "traceback": ""}


def all_stopped(outcome: Outcome, reason: str, limit: float) -> Outcome:
    """The outcome of a job that was stopped, and of the partners that were stopped with it, in the record's words.

    Args:
        outcome: as read.
        reason: `timeout` or `preempted`.
        limit: the time limit in seconds.
    """

    def worded(one: Outcome) -> Outcome:
        return replace(one, status=reason, error=stopped_error(reason, one.error, limit))

    partners = [worded(one) if one is not None and one.status == "preempted" else one for one in outcome.partners]
    found = worded(outcome) if outcome.status == "preempted" else outcome
    return replace(found, partners=partners)
