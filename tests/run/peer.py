"""A run on a shared folder in a process of its own, where flock does nothing, as on many parallel file systems."""

from __future__ import annotations

import argparse
import fcntl
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

fcntl.flock = lambda *_: None
fcntl.lockf = lambda *_: None

from dfqbench.run.schedule.run_environment import Rules  # noqa: E402 - after flock is gone
from pretend import Executor, done, plan_of, schedule  # noqa: E402

SEEDS = "0-3"
CELLS = 4


class Peer:
    """The other side of such a process, for a test."""

    def __init__(self, folder: Path, *, seconds: float, lease: float) -> None:
        command = [sys.executable, __file__, str(folder), f"{seconds}", f"{lease}"]
        path = [str(Path(__file__).parent), *sys.path]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env={"PYTHONPATH": ":".join(filter(None, path))}
        )
        self.begun: list[str] = []

    def wait_until_begun(self) -> str:
        """Return the identity of the next cell that it begins."""
        assert self.process.stdout is not None
        self.begun.append(self.process.stdout.readline().strip())
        return self.begun[-1]

    def end(self) -> dict[str, Any]:
        """Wait for its end; return its summary."""
        output = self.process.communicate(timeout=120)[0].splitlines()
        assert self.process.returncode == 0
        self.begun += output[:-1]
        return dict(json.loads(output[-1]))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("seconds", type=float)
    parser.add_argument("lease", type=float)
    given = parser.parse_args()

    def work(job: Any, *_: Any) -> Any:
        # A run redirects standard output for the hooks of plugins.
        print(Path(job.attempt).parent.name, file=sys.__stdout__, flush=True)
        time.sleep(given.seconds)
        return done()

    rules = Rules(lease_seconds=given.lease)
    summary = schedule(given.folder, plan_of("noise", seeds=SEEDS), Executor(work, slots=1), rules=rules)
    facts = {"records": len(summary.records), "missing": summary.missing, "holders": summary.holders}
    sys.stdout.write(json.dumps(facts) + "\n")


if __name__ == "__main__":
    main()
