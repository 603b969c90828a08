"""Processes of a run on this machine: spawning them, and what their deaths mean."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any

from dfqbench.targets.folders import VARIABLE

KEPT_VARIABLES = frozenset({"PATH", "HOME", "PYTHONPATH", "LD_LIBRARY_PATH", "TMPDIR", "VIRTUAL_ENV", "LANG"})
"""Variables that a process cannot do without, whatever they hold."""
ALLOCATOR = (
    "glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=8589934592:glibc.malloc.hugetlb=1"
    ":glibc.malloc.arena_max=1"
)
"""Large tensors are given and taken back at every step; kept by the process instead of returned to the kernel they cost
no fresh pages (8 % of a step of GDFQ on one core; the results are the same). One arena serves all threads: students of
one loop reuse one another's memory (three of GDFQ's on CIFAR-10: 1,372 MiB instead of 1,924). Read by glibc, ignored
elsewhere."""


def spawn(
    module: str,
    arguments: list[str],
    log: IO[str],
    *,
    threads: int,
    variables: Mapping[str, str] | None = None,
    hidden: Iterable[str] = (),
) -> subprocess.Popen[str]:
    """Starts a module of ours in a process and session of its own: a Ctrl-C is the parent's alone.

    Args:
        module: what to run.
        arguments: its arguments.
        log: where it prints.
        threads: CPU threads of the libraries.
        variables: environment variables to set.
        hidden: paths of real data; no variable of the process holds one of them.
    """
    environment = clean_environment(os.environ, hidden)
    environment |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}
    environment |= variables or {}
    environment.setdefault("GLIBC_TUNABLES", ALLOCATOR)
    return subprocess.Popen(  # noqa: S603 - our own interpreter and module
        # -P keeps the current folder off the path: a file there must not stand in for a library.
        [sys.executable, "-P", "-m", module, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        encoding="utf-8",
        env=environment,
        start_new_session=True,
    )


def clean_environment(variables: Mapping[str, str], hidden: Iterable[str]) -> dict[str, str]:
    """Environment variables without those that name data folders, or hold one of the hidden paths."""
    paths = [form for path in hidden if len(form := path.rstrip(os.sep)) > 1]
    return {
        name: value
        for name, value in variables.items()
        if name != VARIABLE and (name in KEPT_VARIABLES or not any(path in value for path in paths))
    }


def end_group(process: subprocess.Popen[str]) -> None:
    """Kills what a process has left behind: children that a plugin started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def out_of_memory_kills() -> int:
    """How often this machine's kernel has killed for want of memory; 0 where it does not say."""
    try:
        for line in Path("/proc/vmstat").read_text(encoding="ascii").splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    except (OSError, ValueError):
        pass
    return 0


def death(code: int, who: str = "worker", *, starved: bool = False) -> dict[str, Any]:
    """Describes a process that ended without a word.

    Args:
        code: its return code.
        who: what to call it.
        starved: whether the kernel has killed for want of memory meanwhile.
    """
    if code < 0:
        name = signal.Signals(-code).name if -code in signal.valid_signals() else str(-code)
        message = f"the {who} was killed by {name}"
        if name == "SIGKILL":
            message += ": the machine ran out of memory" if starved else " (often: out of memory)"
    else:
        message = f"the {who} ended with status {code} before it was done"
    return {"type": "WorkerDied", "message": message, "phase": None, "step": None, "plugin": None, "traceback": ""}
