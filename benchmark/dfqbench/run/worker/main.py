"""The worker: one process for the plugin code of one attempt.

Run as `python -m dfqbench.run.worker.main JOB`. It writes events as lines to its standard output; everything that
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
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from filelock import FileLock, Timeout

from dfqbench.run.execute.events import EventSink, EventWriter, Failed, Phase, WorkerStarted
from dfqbench.run.execute.job import Job
from dfqbench.run.worker.stop_flag import StopFlag

ORPHAN_SECONDS = 60.0
"""How long to wait for the worker of an earlier attempt that outlives its parent by a moment."""
FIRST_TO_KILL = "800"
"""Badness added for the kernel's choice of whom to kill when memory runs out: the worker, not its parent."""
LOCK = ".worker.lock"


def main(argv: list[str]) -> int:
    """Runs a job.

    Args:
        argv: path of the job file.

    Returns:
        0; whatever went wrong was sent to the parent.
    """
    _end_with_the_parent()
    events = EventWriter()
    flag = StopFlag()
    flag.listen()
    # A native crash leaves its stack in the log, and so does a worker that hangs and is about to be killed.
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR2, all_threads=True)
    events.send(WorkerStarted())
    job = Job.read(Path(argv[0]))
    _limit_memory(job.memory_mib)
    try:
        with _sole_worker(job.checkpoints), contextlib.ExitStack() as stack:
            run_job(_with_free_members(job, stack), events, flag)
    except Timeout:
        message = "an earlier worker of this cell is still alive"
        events.send(Failed("failed", "Orphan", message, Phase.SETUP, None, plugin="", traceback="", so_far={}))
    return 0


def run_job(job: Job, events: EventSink, flag: StopFlag | None = None) -> None:
    """Runs a job in this process, and its members where one source can serve all of them.

    Sends how each of them ends as `Finished`, `Failed` or `Interrupted`; a member's are wrapped in `MemberEvent`, and a
    member of which nothing is sent runs by itself.
    """
    # Imported here, so that the parent's clock has seen the process start before torch loads.
    from dfqbench.run.worker.attempt import Attempt
    from dfqbench.run.worker.exit import report_failure
    from dfqbench.run.worker.shared_job import run_group

    flag = flag or StopFlag()
    attempt = Attempt(job, events, flag)
    with report_failure(attempt, events):
        attempt.begin()
        run_group(attempt, job, events, flag)


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


def _with_free_members(job: Job, stack: contextlib.ExitStack) -> Job:
    """The job, with its members if no other worker has one of them in hand."""
    try:
        for member in job.members:
            stack.enter_context(_sole_worker(member.checkpoints))
    except Timeout:
        return replace(job, members=[])
    return job


if __name__ == "__main__":
    try:
        status = main(sys.argv[1:])
    except BaseException as error:
        from dfqbench.run.worker.exit import die

        die(error)
    sys.stdout.flush()
    sys.stderr.flush()
    # Everything is on disk and sent; taking torch apart would cost the sweep a second a cell.
    os._exit(status)
