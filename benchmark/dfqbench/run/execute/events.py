"""Events that a worker sends to its parent, one JSON object a line."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, fields
from enum import StrEnum
from functools import cache
from typing import IO, Any, ClassVar, Protocol, TypeAlias, cast, get_args, get_origin, get_type_hints

from dfqbench.api.errors import DfqError


class Phase(StrEnum):
    """Part of an attempt at a cell."""

    SETUP = "setup"
    SYNTHESIS = "synthesis"
    QUANTIZATION = "quantization"
    SAVING = "saving"
    EVALUATION = "evaluation"


class Sharing(StrEnum):
    """How the members of a job share a worker.

    `ALONE`: not at all. `ONE_BY_ONE`: one after the other, from the saved source. `ONE_LOOP`: in one loop, from one
    live source.
    """

    ALONE = "alone"
    ONE_BY_ONE = "one by one"
    ONE_LOOP = "one loop"


class EventError(DfqError):
    """JSON data of a worker is no event."""


@dataclass(frozen=True, slots=True)
class WorkerStarted:
    """The worker handles signals from now on."""

    name: ClassVar[str] = "started"


@dataclass(frozen=True, slots=True)
class PhaseStarted:
    """A phase has begun."""

    name: ClassVar[str] = "phase"
    phase: Phase


@dataclass(frozen=True, slots=True)
class Progress:
    """A plugin reported a step."""

    name: ClassVar[str] = "progress"
    phase: Phase  # the phase under way
    step: int  # of the phase, from 1
    total: int  # steps of the phase
    scalars: dict[str, float]  # losses and other numbers, by name


@dataclass(frozen=True, slots=True)
class Warned:
    """A warning for the user."""

    name: ClassVar[str] = "warning"
    message: str


@dataclass(frozen=True, slots=True)
class SourceReady:
    """The source of images is made or loaded; `shared`: it is on disk, for other cells."""

    name: ClassVar[str] = "source"
    shared: bool


@dataclass(frozen=True, slots=True)
class SharedJob:
    """How a job's cells share its worker; `members`: number of cells beside the first."""

    name: ClassVar[str] = "shared_job"
    sharing: Sharing
    members: int


@dataclass(frozen=True, slots=True)
class Probed:
    """Expected seconds of a whole phase, from its first steps."""

    name: ClassVar[str] = "probe"
    phase: Phase
    seconds: float


@dataclass(frozen=True, slots=True)
class Finished:
    """The student is saved; `result` is `Attempt.finish()`."""

    name: ClassVar[str] = "result"
    result: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Failed:
    """An exception ended the attempt."""

    name: ClassVar[str] = "error"
    status: str  # as in the record
    type: str  # class of the exception
    message: str  # one line
    phase: Phase  # in which it happened
    step: int | None  # last reported step, or None
    plugin: str  # whose code was running; empty: the host's
    traceback: str  # of the exception
    so_far: dict[str, Any]  # `Accounting.so_far()`


@dataclass(frozen=True, slots=True)
class Interrupted:
    """A cancellation ended the attempt."""

    name: ClassVar[str] = "stopped"
    kept: bool  # whether a state was written just before
    phase: Phase  # in which it happened
    step: int | None  # last reported step, or None
    so_far: dict[str, Any]  # `Accounting.so_far()`


OfMember: TypeAlias = Finished | Failed | Interrupted | Warned
"""Events that members send; progress and phases are those of the job's first cell."""


@dataclass(frozen=True, slots=True)
class MemberEvent:
    """An event of the job's member `number`, from 0."""

    name: ClassVar[str] = "member"
    number: int
    event: OfMember


Event: TypeAlias = WorkerStarted | PhaseStarted | Progress | SourceReady | SharedJob | Probed | OfMember | MemberEvent


class EventSink(Protocol):
    """Takes the events of an attempt."""

    def send(self, event: Event) -> None:
        """Send one event."""
        ...


class EventWriter:
    """Writes events as lines to the standard output; other output goes to standard error."""

    def __init__(self) -> None:
        self._stream: IO[str] = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
        os.dup2(2, 1)

    def send(self, event: Event) -> None:
        """Write one event."""
        self._stream.write(to_line(event) + "\n")
        self._stream.flush()


def to_line(event: Event) -> str:
    """Return an event as JSON; values that JSON does not know become text."""
    return json.dumps(event, default=_plain)


def from_line(line: str) -> Event:
    """Return the event of a line that `to_line` made.

    Raises:
        EventError: the line is JSON, and no event.
        ValueError: the line is no JSON: other output, or a line cut off.
        RecursionError: the line is nested too deep.
    """
    return cast(Event, _event(json.loads(line), Event))


def _plain(value: object) -> object:
    if isinstance(value, Event):
        return {"name": value.name} | {field.name: getattr(value, field.name) for field in fields(value)}
    return str(value)


def _event(data: Any, union: Any) -> object:
    if not isinstance(data, dict):
        raise EventError(f"a worker's event is a {type(data).__name__}, not an object")
    name = data.get("name")
    cls = next((cls for cls in get_args(union) if cls.name == name), None)
    if cls is None:
        raise EventError(f"a worker sent an unknown event {name!r}")
    types = _types(cls)
    if (keys := data.keys() - {"name"}) != types.keys():
        raise EventError(f"a worker's event {name!r} has {sorted(keys)}, not {sorted(types)}")
    return cls(**{field: _value(data[field], types[field], f"{name}.{field}") for field in types})


@cache
def _types(cls: type[Any]) -> dict[str, Any]:
    hints = get_type_hints(cls)
    return {field.name: hints[field.name] for field in fields(cls)}


def _value(value: Any, expected: Any, where: str) -> object:
    if expected == OfMember:
        return _event(value, OfMember)
    if isinstance(expected, type) and issubclass(expected, StrEnum):
        if value in list(expected):
            return expected(value)
        raise EventError(f"{where} of a worker's event is {value!r}, not one of {', '.join(expected)}")
    accepted = dict if get_origin(expected) is dict else int | float if expected is float else expected
    if not isinstance(value, accepted):
        raise EventError(f"{where} of a worker's event is a {type(value).__name__}, not {expected}")
    return value
