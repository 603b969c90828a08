"""Descriptions of the exceptions that end an attempt, also of those with odd messages."""

from __future__ import annotations

import signal
import traceback
from dataclasses import dataclass

from dfqbench.api.errors import DfqError, Invalid, Skip, Unavailable

_NO_MEMORY = ("not enough memory", "t allocate memory", "annot allocate memory")
"""Parts of the messages of torch's RuntimeErrors when memory runs out."""


@dataclass(frozen=True, slots=True)
class Failure:
    """An exception as text."""

    status: str  # of the cell, as in the record
    type: str  # class of the exception
    message: str  # one line
    traceback: str


def describe_failure(error: BaseException) -> Failure:
    """Describe an exception, even one whose message cannot be read."""
    name = type(error).__name__
    try:
        status, message = _status(error), _message(error)
    except BaseException:  # the message is plugin code as well
        status, message = "failed", f"{name}: its message cannot be read"
    try:
        text = "".join(traceback.format_exception(error))
    except BaseException:
        text = f"{name}: its traceback cannot be read\n"
    return Failure(status, name, message, text)


def is_interrupt(error: BaseException) -> bool:
    """Check that an exception is Ctrl-C, and not raised by plugin code while the process handles SIGINT itself."""
    return isinstance(error, KeyboardInterrupt) and signal.getsignal(signal.SIGINT) is signal.default_int_handler


def _message(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        code = error.code
        if code is None or isinstance(code, int):
            return f"plugin code ended the process with status {int(code or 0)}"
        return f"plugin code ended the process with status 1: {_one_line(code)}"
    text = _one_line(error) or ("memory ran out" if isinstance(error, MemoryError) else "no message")
    return text if isinstance(error, DfqError) else f"{type(error).__name__}: {text}"


def _one_line(value: object) -> str:
    return " ".join(str(value).split())


def _status(error: BaseException) -> str:
    if isinstance(error, Skip):
        return "skipped"
    if isinstance(error, Unavailable):
        return "unavailable"
    if isinstance(error, Invalid):
        return "invalid"
    no_memory = {cls.__name__ for cls in type(error).__mro__} & {"MemoryError", "OutOfMemoryError"}
    if no_memory or (isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY)):
        return "oom"
    return "failed"
