"""Kills at armed points and at random moments."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from dfqbench.testing.faults.catalogue import Fault
from dfqbench.testing.faults.sweeps import Findings, Sweep, arm, compare

Say = Callable[[str], None]


def kill_at_points(faults: Sequence[Fault], work: Path, quiet: Sweep, findings: Findings, say: Say) -> None:
    """Injects faults, each once, over as many sweeps as that takes; re-runs each until it is complete.

    Args:
        faults: what to inject.
        work: an empty folder.
        quiet: the undisturbed sweep.
        findings: is added to.
        say: is told of progress.
    """
    left, number = list(faults), 0
    while left:
        number += 1
        armed = work / f"armed-{number}"
        arm(armed, left)
        sweep = Sweep(work / f"out-{number}", quiet.grid)
        _complete(sweep, armed, findings)
        compare(sweep, quiet, findings)
        fired = sorted(int(path.stem) for path in armed.glob("*.fired"))
        for index in fired:
            findings.add(left[index].kind)
        say(f"sweep {number}: {len(fired)} kills, complete again")
        if not fired:
            raise RuntimeError(f"these points were never reached: {[fault.point for fault in left]}")
        left = [fault for index, fault in enumerate(left) if index not in fired]


def _complete(sweep: Sweep, armed: Path, findings: Findings) -> None:
    """Gives the same command again until it ends well."""
    for _ in range(10_000):
        safe = set(sweep.finished())
        done = sweep.run("--retry", "failed", armed=armed)
        look(sweep, safe, findings)
        if done.returncode == 0:
            return
        if done.returncode not in {1, -signal.SIGKILL}:
            raise RuntimeError(f"the run ended with status {done.returncode}:\n{done.stderr}")
    raise RuntimeError("the sweep does not come to an end")


def look(sweep: Sweep, safe: set[str], findings: Findings) -> None:
    """Counts what a fault has destroyed."""
    findings.torn += sweep.torn()
    findings.lost += len(safe - set(sweep.finished()))


def kill_at_moments(count: int, seed: int, work: Path, quiet: Sweep, *, findings: Findings, say: Say) -> None:
    """Kills the parent, or one of its processes, at random moments; then lets the sweep complete.

    Args:
        count: kills.
        seed: of the moments and victims.
        work: an empty folder.
        quiet: the undisturbed sweep.
        findings: is added to.
        say: is told of progress.
    """
    draw = random.Random(seed)  # noqa: S311 - not for secrets
    killed = number = 0
    while killed < count:
        number += 1
        sweep = Sweep(work / f"random-{number}", quiet.grid)
        for _ in range(10_000):
            safe = set(sweep.finished())
            process = sweep.start("--retry", "failed")
            begin, moment = time.monotonic(), draw.uniform(0.5, 15.0)
            while process.poll() is None and time.monotonic() - begin < moment:
                time.sleep(0.01)
            if process.poll() is None and killed < count:
                victim = draw.choice([process.pid, *_children(process.pid)])
                with contextlib.suppress(ProcessLookupError):
                    os.kill(victim, signal.SIGKILL)
                    killed += 1
                    findings.add("random moment")
            process.communicate()
            look(sweep, safe, findings)
            if process.returncode == 0:
                break
        compare(sweep, quiet, findings)
        say(f"random sweep {number}: {killed} of {count} kills, complete again")


def _children(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += [int(word) for word in task.read_text(encoding="ascii").split()]
    return found
