"""Kills at armed points and at random moments."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from toy import STEPS
from toy_run import Report, ToyRun

POINTS = {
    "synthesis": (
        *(f"synthesis:{step}" for step in range(1, STEPS + 1)),
        "rename:state.safetensors",
        "rename:source.json",
    ),
    "quantization": tuple(f"quantization:{step}" for step in range(1, STEPS + 1)),
    "checkpoint": ("part:checkpoint", "rename:checkpoint"),
    "record": ("part:record.json", "rename:record.json", "open:job.json", "rename:table.txt"),
    "evaluation": ("open:student.json",),
}
"""Points by kind of kill: `phase:step` of the toy method, or `operation:file`."""
SHARED = "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108
"""A folder that confined workers may change, too."""
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Kill:
    """A kill of `self` or `parent` at one of `POINTS` that a role (`worker`, `evaluate`, `parent`) passed `skip` times.

    A third victim is `tear`: the file is cut in half under its final name before the process dies.
    """

    kind: str
    role: str
    point: str
    victim: str
    skip: int


def choose(count: int, seed: int) -> list[Kill]:
    """Return `count` kills, the same for the same seed, spread evenly over the kinds."""
    rng = random.Random(seed)  # noqa: S311
    return [_draw(kind, rng) for kind in itertools.islice(itertools.cycle(POINTS), count)]


def _draw(kind: str, rng: random.Random) -> Kill:
    point = rng.choice(POINTS[kind])
    role = {"record": "parent", "evaluation": "evaluate"}.get(kind, "worker")
    victims = ["self"] if role == "parent" else ["self", "parent"]
    if point == "rename:checkpoint":
        victims.append("tear")
    passes = {"checkpoint": STEPS, "record": 2, "evaluation": 2}.get(kind, 1)
    skip = 0 if point == "rename:table.txt" else rng.randrange(passes)
    return Kill(kind, role, point, rng.choice(victims), skip)


def kill_at_points(kills: Sequence[Kill], work: Path, reference: ToyRun) -> Report:
    """Inject every kill once, over as many runs in `work` as that takes; repeat each run until it is complete."""
    report, left, number = Report(), list(kills), 0
    while left:
        number += 1
        armed = Path(tempfile.mkdtemp(prefix="dfqbench-armed-", dir=SHARED))
        for index, kill in enumerate(left):
            (armed / f"{index:03d}.json").write_text(json.dumps(asdict(kill)), encoding="utf-8")
        run = ToyRun(work / f"out-{number}", reference.grid)
        status = 1
        while status != 0:
            finished = run.finished()
            status = run.run("--retry", "failed", armed=armed, statuses=(0, 1, -signal.SIGKILL))
            report.inspect(run, finished)
        report.compare(run, reference)
        fired = {int(path.stem) for path in armed.glob("*.fired")}
        shutil.rmtree(armed)
        report.injected.update(left[index].kind for index in sorted(fired))
        log.info("run %d: %d kills, complete again", number, len(fired))
        if not fired:
            raise RuntimeError(f"these points were never reached: {[kill.point for kill in left]}")
        left = [kill for index, kill in enumerate(left) if index not in fired]
    return report


def kill_at_moments(count: int, seed: int, work: Path, reference: ToyRun) -> Report:
    rng = random.Random(seed)  # noqa: S311
    report, killed, number = Report(), 0, 0
    while killed < count:
        number += 1
        run = ToyRun(work / f"random-{number}", reference.grid)
        status = 1
        while status != 0:
            finished = run.finished()
            process = run.start("--retry", "failed")
            end = time.monotonic() + rng.uniform(0.5, 15.0)
            while process.poll() is None and time.monotonic() < end:
                time.sleep(0.01)
            if process.poll() is None and killed < count:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(rng.choice([process.pid, *_children(process.pid)]), signal.SIGKILL)
                    killed += 1
            process.communicate()
            report.inspect(run, finished)
            status = process.returncode
        report.compare(run, reference)
        log.info("random run %d: %d of %d kills, complete again", number, killed, count)
    report.injected["random moment"] += killed
    return report


def _children(pid: int) -> list[int]:
    children: list[int] = []
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            children += map(int, file.read_text(encoding="ascii").split())
    return children
