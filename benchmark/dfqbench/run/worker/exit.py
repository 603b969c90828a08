"""How an attempt ends, as its worker reports it to the parent."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Iterator
from typing import NoReturn

from dfqbench.api.errors import DfqError, Skip, Unavailable
from dfqbench.run.execute.events import EventSink, Failed, Interrupted
from dfqbench.run.worker.attempt import Attempt
from dfqbench.run.worker.first_steps import ProbeDone
from dfqbench.run.worker.stop_flag import Stopped

_NO_MEMORY = ("not enough memory", "t allocate memory", "annot allocate memory")


@contextlib.contextmanager
def report_failure(attempt: Attempt, events: EventSink) -> Iterator[None]:
    """Send what ends an attempt in the block, instead of raising it."""
    try:
        yield
    except ProbeDone:
        pass
    except Stopped as end:
        events.send(Interrupted(end.kept, attempt.phase, attempt.step, attempt.costs.so_far()))
    except Exception as error:
        events.send(_failed(error, attempt))


def _status(error: Exception) -> str:
    if isinstance(error, Skip):
        return "skipped"
    if isinstance(error, Unavailable):
        return "unavailable"
    return "oom" if _is_out_of_memory(error) else "failed"


def _is_out_of_memory(error: Exception) -> bool:
    """Whether memory of the process or the device ran out, as Python, torch and its CPU allocator say it."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & {"MemoryError", "OutOfMemoryError"}) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY)
    )


def _failed(error: Exception, attempt: Attempt) -> Failed:
    text = " ".join(str(error).split()) or ("memory ran out" if isinstance(error, MemoryError) else "no message")
    return Failed(
        status=_status(error),
        type=type(error).__name__,
        message=text if isinstance(error, DfqError) else f"{type(error).__name__}: {text}",
        phase=attempt.phase,
        step=attempt.step,
        plugin=attempt.plugin,
        traceback="".join(traceback.format_exception(error)),
        so_far=attempt.costs.so_far(),
    )


def die(error: BaseException) -> NoReturn:
    """Ends the process at once, with the status and the words of an exception that nothing catches.

    An orderly end of the interpreter would wait for threads that still run.
    """
    if not isinstance(error, SystemExit):
        sys.excepthook(type(error), error, error.__traceback__)
    elif isinstance(error.code, str):
        sys.stderr.write(f"{error.code}\n")
    code = error.code if isinstance(error, SystemExit) else 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))
