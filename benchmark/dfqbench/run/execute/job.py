"""Jobs, the executors that carry them out, and the outcomes made of the events that workers send.

An executor has as many slots as jobs may run at once. The scheduler calls `run` from one thread a slot and passes the
attempt's folder. A worker process runs `python -m dfqbench.run.worker.main <attempt>/job.json`; the executor reads its
events (`EventReader`) and passes a cancellation on to it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from dfqbench.api.errors import DfqError
from dfqbench.run.execute.cancellation import Cancellation
from dfqbench.run.execute.events import Event, EventError, Failed, Finished, Interrupted, MemberEvent, Warned
from dfqbench.run.store.files import shortened, valid
from dfqbench.run.store.lease import LEASE_SECONDS

JOB = "job.json"
MOST_STUDENTS = 16
"""Students that are evaluated in one pass; all of them are in memory."""
CHECKPOINT_EVERY = 300.0
"""Default seconds between checkpoints."""
OnEvent = Callable[[Event], None]
OnProgress = Callable[[int, int], None]
"""Takes how many of how many images are evaluated."""


@dataclass(frozen=True, slots=True)
class JobMember:
    """Another cell of a job, which differs from the first in the scheme only."""

    scheme: dict[str, Any]  # `Scheme.as_dict()`
    attempt: str  # the attempt's folder
    checkpoints: str  # folder of the cell's checkpoints, or empty: none are kept


@dataclass(frozen=True, slots=True)
class Job:
    """One attempt at a cell, as JSON for another process."""

    method: str  # the host makes the images of `real`
    method_params: dict[str, Any]
    quantizer: str  # the shared quantizer
    quantizer_params: dict[str, Any]
    own_quantize: bool  # whether the method's own `quantize` runs (it may call the shared one)
    model: dict[str, Any]  # `ModelSpec.as_dict()`
    scheme: dict[str, Any]  # `Scheme.as_dict()`
    budget: str
    seed_key: str  # `Cell.seed_key`
    precision: str  # of the training loops
    threads: int  # CPU threads
    device: str  # torch device
    attempt: str  # the attempt's folder
    source: str  # folder of the shared source
    dataset: dict[str, Any]  # `DatasetSpec.as_dict()`, for a student that only the worker can run
    limit: int | None  # evaluation images, or None: all
    guarded: list[str]  # folders and files of real data
    environment: str  # identity of the environment
    accepted_environment: str | None  # that of saved sources that may be used, or None: any
    plugin_files: list[str]
    started: float  # the parent's monotonic clock when the attempt began
    run: str = ""  # the run's folder, in which plugin code may write to its attempt's only
    checkpoints: str = ""  # folder of the cell's checkpoints, or empty: none are kept
    checkpoint_every: float = CHECKPOINT_EVERY  # seconds between two
    memory_mib: int = 0  # most private memory of the process in MiB, or 0: no limit
    time_limit: float = 0.0  # seconds for the worker, or 0: no limit; kept by the executor
    snapshots: int = 0  # states of the student to keep during its training, for the oracle
    probe_seconds: float = 0.0  # stop after so many seconds of steps, for an estimate; 0: run to the end
    shared_flag: str = ""  # flag of its records where other jobs use the same GPU or CPU (`SHARED`), or empty
    confined: bool = False  # whether the process of plugin code is to be confined; set by the executor
    lease: str = ""  # file of the first cell's lease, without which the worker ends; empty: none is needed
    lease_token: str = ""  # what that file holds as long as the lease is the parent's
    lease_seconds: float = LEASE_SECONDS  # without a heartbeat until a lease is taken over
    members: list[JobMember] = field(default_factory=list)  # further cells of the same source that may share the worker

    def of_member(self, number: int) -> Job:
        """Return a member's job: this one with another scheme and other folders."""
        return replace(self, members=[], **asdict(self.members[number]))

    def write(self, path: Path) -> None:
        """Write the job as JSON."""
        path.write_text(json.dumps(asdict(self), indent=1), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Job:
        """Read what `write` wrote."""
        data = json.loads(path.read_text(encoding="utf-8"))
        return cls(**data | {"members": [JobMember(**member) for member in data["members"]]})


@dataclass(slots=True)
class Outcome:
    """How an attempt ended in the worker."""

    status: str  # as in the record, before the evaluation
    result: Mapping[str, Any] = field(default_factory=dict)  # the worker's report at the end; empty without one
    error: dict[str, Any] | None = None  # type, message, phase, step, plugin and traceback, or None
    died: bool = False  # whether the worker ended without a report
    members: Sequence[Outcome | None] = ()  # outcomes of the job's members; None: the member must run by itself

    def described(self, reason: str, limit: float) -> Outcome:
        """Return the outcome with the status `timeout` or `preempted` and its error, if it or a member was stopped."""
        members = [None if member is None else member.described(reason, limit) for member in self.members]
        if self.status != "preempted":
            return replace(self, members=members)
        return replace(self, status=reason, error=stopped_error(reason, self.error, limit), members=members)


@dataclass(frozen=True, slots=True)
class Slot:
    """A place for one job at a time."""

    number: int  # from 0
    variables: Mapping[str, str] = field(default_factory=dict)  # bind a process to the slot's device
    shared_flag: str = ""  # of the records of its jobs where other slots use the same GPU or CPU (`SHARED`), or empty


class EvaluatorDiedError(DfqError):
    """The evaluator's process ended in the middle of a request."""


class EvaluationTimeoutError(EvaluatorDiedError):
    """The evaluator's process was ended because an answer took longer than the time limit."""


class EvaluatorClient(Protocol):
    """A slot's evaluator."""

    def ask(
        self, request: Mapping[str, Any], limit: float = 0.0, on_progress: OnProgress | None = None
    ) -> dict[str, Any]:
        """Send a request and wait for the answer; an error of the request is part of the answer.

        Args:
            request: an operation and its arguments.
            limit: seconds until the evaluator is ended; 0: never. One in the calling process cannot be ended.
            on_progress: takes the number of evaluated images, and of all, every now and then.

        Raises:
            EvaluatorDiedError: it ended; the next request starts a new one.
            EvaluationTimeoutError: it took longer than the limit, and was ended.
        """
        ...

    def kill(self) -> None:
        """End it in the middle of a request; called from another thread."""
        ...


class Executor(Protocol):
    """Carries out jobs."""

    @property
    def slots(self) -> Sequence[Slot]:
        """Places for jobs; as many jobs may run at once."""
        ...

    @property
    def in_process(self) -> bool:
        """Whether jobs run in the calling process, and must be run from its main thread."""
        ...

    def run(self, job: Job, slot: Slot, on_event: OnEvent, cancellation: Cancellation) -> Outcome:
        """Carry a job, whose attempt's folder exists, to its end; called from several threads, one a slot.

        After `job.time_limit`, or once cancellation is requested, it keeps its state and ends as `timeout` or
        `preempted`. `on_event` takes phases, progress and warnings.
        """
        ...

    def evaluator(self, slot: Slot) -> EvaluatorClient:
        """Return the slot's evaluator; the same one each time."""
        ...

    def close(self) -> None:
        """End the evaluators."""
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
        return None if self._own is None else replace(self._own, members=self.members)

    @property
    def members(self) -> list[Outcome | None]:
        """How the members ended, as far as known."""
        return [member.outcome for member in self._members]

    def send(self, event: Event) -> None:
        """Take one event into account.

        Raises:
            EventError: the job has no member of the event's number.
        """
        match event:
            case Finished(result):
                self._own = Outcome("ok", result=valid(result))
            case Failed():
                error = {name: getattr(event, name) for name in ("type", "message", "step", "plugin", "traceback")}
                error = valid(error | {"phase": str(event.phase)})
                self._own = Outcome(event.status, result=valid(event.so_far), error=error)
            case Interrupted(kept, phase, step, so_far):
                error = {"kept": kept, "phase": str(phase), "step": step}
                self._own = Outcome("preempted", result=valid(so_far), error=error)
            case MemberEvent(number, member_event):
                if not 0 <= number < len(self._members):
                    raise EventError(f"a worker sent an event of member {number} of {len(self._members)}")
                self._members[number].send(member_event)
            case Warned(message):
                self._on_event(Warned(shortened(message)))
            case _:
                self._on_event(event)


def stopped_error(reason: str, interrupted: Mapping[str, Any] | None, limit: float) -> dict[str, Any]:
    """Describe a job that was stopped, by the time limit or a preemption.

    `interrupted` holds `kept`, `phase` and `step` of the worker's `Interrupted`; None: it had to be killed.
    """
    why = f"the time limit of {limit:g} s was reached" if reason == "timeout" else "the run was stopped"
    if interrupted is None:
        how = "; the worker did not stop by itself and was killed: the stack in its log says where it was"
    elif interrupted.get("kept"):
        how = "; it goes on from its last step"
    else:
        how = "; it kept no state in this phase, and starts it again"
    place = {key: (interrupted or {}).get(key) for key in ("phase", "step")}
    return {"type": reason.title(), "message": why + how, **place, "plugin": None, "traceback": ""}
