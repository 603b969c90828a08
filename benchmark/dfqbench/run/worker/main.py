"""The worker: one process for the plugin code of one job.

Run as `python -m dfqbench.run.worker.main JOB`. It writes events as lines to its standard output; everything that
plugin code prints goes to the log. SIGTERM, SIGINT and SIGUSR1 request to save the state at the next step boundary and
end; SIGUSR2 writes the stacks of all threads to the log.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import resource
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from dfqbench.run.execute.cancellation import StopFlag
from dfqbench.run.execute.events import EventWriter, Failed, Phase, WorkerStarted
from dfqbench.run.execute.job import Job
from dfqbench.run.store.lease import HEARTBEATS, Leases, is_held

ORPHAN_SECONDS = 60.0
"""How long to wait for the worker of an earlier attempt that outlives its parent by a moment."""
OOM_SCORE = "800"
"""Added to the kernel's score of the process: when memory runs out, the worker is killed before its parent."""
LOCK, LOCK_SECONDS = ".worker", 30.0
"""Name and length of a worker's own lease, which lies beside its checkpoints."""


def main(argv: list[str]) -> None:
    """Run the job of the file `argv[0]`; errors are sent to the parent."""
    _end_with_parent()
    events = EventWriter()
    flag = StopFlag()
    flag.install()
    # A native crash leaves its stack in the log, and so does a worker that hangs and is about to be killed.
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR2, all_threads=True)
    events.send(WorkerStarted())
    job = Job.read(Path(argv[0]))
    if job.memory_mib:
        resource.setrlimit(resource.RLIMIT_DATA, (job.memory_mib * 2**20, job.memory_mib * 2**20))
    _end_without_lease(job)
    with contextlib.ExitStack() as locks:
        try:
            _lock(job.checkpoints, locks)
        except TimeoutError:
            message = "an earlier worker of this cell is still alive"
            events.send(Failed("failed", "Orphan", message, Phase.SETUP, None, plugin="", traceback="", so_far={}))
            return
        try:
            for member in job.members:
                _lock(member.checkpoints, locks)
        except TimeoutError:
            job = replace(job, members=[])
        # Imported here, so that the parent's clock has seen the process start before torch loads.
        from dfqbench.run.worker.shared_job import run_job

        run_job(job, events, flag)


def _end_with_parent() -> None:
    """End this process when its standard input closes, which happens when the parent ends for any reason."""

    def watch() -> None:
        sys.stdin.buffer.read()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(OOM_SCORE)


def _end_without_lease(job: Job) -> None:
    """End this process when another run takes its cell over, since a parent that is suspended cannot end it."""

    def watch() -> None:
        while is_held(job.lease, job.lease_token):
            time.sleep(job.lease_seconds / HEARTBEATS)
        sys.stderr.write("another run has taken this cell over\n")
        os._exit(1)

    if job.lease:
        threading.Thread(target=watch, daemon=True).start()


def _lock(folder: str, locks: contextlib.ExitStack) -> None:
    """Wait until no other worker of the same cell lives: a killed parent's lease is taken over before its worker ends.

    Raises:
        TimeoutError: it lives on.
    """
    if not folder:
        return
    leases, end = Leases(Path(folder), LOCK_SECONDS), time.monotonic() + ORPHAN_SECONDS
    while (lease := leases.take(LOCK)) is None:
        if time.monotonic() > end:
            raise TimeoutError
        time.sleep(0.1)
    locks.callback(lease.release)


def hard_exit(error: BaseException | None = None) -> NoReturn:
    """End the process at once, with the status and message of an uncaught exception.

    An orderly exit would wait for threads that still run, and spend a second on unloading torch.
    """
    code: object = None
    if isinstance(error, SystemExit):
        code = error.code
        if isinstance(code, str):
            sys.stderr.write(f"{code}\n")
    elif error is not None:
        sys.excepthook(type(error), error, error.__traceback__)
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except BaseException as error:
        hard_exit(error)
    hard_exit()
