"""The worker: one process for the plugin code of one attempt.

Run as `python -m dfqbench.run.worker JOB`. It sends one JSON object a line on its standard output; everything that
plugin code prints goes to the log. SIGTERM, SIGINT and SIGUSR1 ask it to keep its state at the next step boundary and
end; SIGUSR2 writes where it is to the log.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import resource
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from dfqbench.api.errors import DfqError, Skip, Unavailable
from dfqbench.run.channel import Channel, Sink
from dfqbench.run.flag import StopFlag, Stopped
from dfqbench.run.job import Job

if TYPE_CHECKING:
    from dfqbench.run.attempt import Attempt

ORPHAN_SECONDS = 60.0
"""How long to wait for the worker of an earlier attempt that outlives its parent by a moment."""
FIRST_TO_KILL = "800"
"""Badness added for the kernel's choice of whom to kill when memory runs out: the worker, not its parent."""
LOCK = ".worker.lock"
_NO_MEMORY = ("not enough memory", "t allocate memory", "annot allocate memory")


def main(argv: list[str]) -> int:
    """Runs a job.

    Args:
        argv: path of the job file.

    Returns:
        0; whatever went wrong was sent to the parent.
    """
    _end_with_the_parent()
    channel = Channel()
    flag = StopFlag()
    flag.listen()
    # A native crash leaves its stack in the log, and so does a worker that hangs and is about to be killed.
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR2, all_threads=True)
    job = Job.read(Path(argv[0]))
    _limit_memory(job.memory_mib)
    try:
        with _sole_worker(job.checkpoints):
            run_job(job, channel, flag)
    except Timeout:
        message = "an earlier worker of this cell is still alive"
        channel.send("error", status="failed", type="Orphan", message=message, phase="setup", step=None, so_far={})
    return 0


def run_job(job: Job, channel: Sink, flag: StopFlag | None = None) -> None:
    """Runs a job in this process and sends how it ends as `result`, `error` or `stopped`."""
    # Imported here, so that the parent's clock has seen the process start before torch loads.
    from dfqbench.run.attempt import Attempt, ProbeDone

    attempt = Attempt(job, channel, flag)
    try:
        result = attempt.run()
    except ProbeDone:
        return
    except Stopped as end:
        channel.send("stopped", kept=end.kept, phase=attempt.phase, step=attempt.step, so_far=attempt.so_far())
    except Exception as error:
        channel.send("error", status=_status(error), **_described(error, attempt))
    else:
        channel.send("result", **result)


def _end_with_the_parent() -> None:
    """Ends this process when its standard input closes, which happens when the parent dies, however it dies."""

    def watch() -> None:
        sys.stdin.buffer.read()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(FIRST_TO_KILL)


def _limit_memory(mib: int) -> None:
    if mib:
        resource.setrlimit(resource.RLIMIT_DATA, (mib * 2**20, mib * 2**20))


@contextlib.contextmanager
def _sole_worker(folder: str) -> Iterator[None]:
    """Waits until no other worker of the same cell lives: the parent's lock falls a moment before its orphan ends."""
    if not folder:
        yield
        return
    Path(folder).mkdir(parents=True, exist_ok=True)
    with FileLock(Path(folder) / LOCK, timeout=ORPHAN_SECONDS):
        yield


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


def _described(error: BaseException, attempt: Attempt) -> dict[str, Any]:
    text = " ".join(str(error).split()) or ("memory ran out" if isinstance(error, MemoryError) else "no message")
    return {
        "type": type(error).__name__,
        "message": text if isinstance(error, DfqError) else f"{type(error).__name__}: {text}",
        "phase": attempt.phase,
        "step": attempt.step,
        "plugin": attempt.plugin,
        "traceback": "".join(traceback.format_exception(error)),
        "so_far": attempt.so_far(),
    }


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    # Everything is on disk and sent; taking torch apart would cost the sweep a second a cell.
    os._exit(status)
