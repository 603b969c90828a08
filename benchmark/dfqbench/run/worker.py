"""The worker: one process for the plugin code of one attempt.

Run as `python -m dfqbench.run.worker JOB`. It sends one JSON object a line on its standard output; everything that
plugin code prints goes to the log.
"""

from __future__ import annotations

import os
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

from dfqbench.api.errors import DfqError, Skip, Unavailable
from dfqbench.run.channel import Channel
from dfqbench.run.job import Job


def _end_with_the_parent() -> None:
    """Ends this process when its standard input closes, which happens when the parent dies, however it dies."""

    def watch() -> None:
        sys.stdin.buffer.read()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main(argv: list[str]) -> int:
    """Runs a job.

    Args:
        argv: path of the job file.

    Returns:
        0; whatever went wrong was sent to the parent.
    """
    _end_with_the_parent()
    channel = Channel()
    job = Job.read(Path(argv[0]))
    # Imported here, so that the parent's clock has seen the process start before torch loads.
    from dfqbench.run.attempt import Attempt, ProbeDone

    attempt = Attempt(job, channel)
    try:
        result = attempt.run()
    except ProbeDone:
        return 0
    except Exception as error:
        channel.send("error", status=_status(error), **_described(error, attempt))
    else:
        channel.send("result", **result)
    return 0


def _status(error: Exception) -> str:
    if isinstance(error, Skip):
        return "skipped"
    return "unavailable" if isinstance(error, Unavailable) else "failed"


def _described(error: BaseException, attempt: Any) -> dict[str, Any]:
    text = " ".join(str(error).split()) or "no message"
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
