"""`python -m dfqbench.testing.faults`: injects faults into toy sweeps and prints what they cost."""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from dfqbench.testing.faults.catalogue import choose
from dfqbench.testing.faults.kills import kill_at_moments, kill_at_points
from dfqbench.testing.faults.storage import SIZES, full_disks, scratch, unreadable_folder
from dfqbench.testing.faults.sweeps import GRID, Findings, Sweep


def main(arguments: list[str] | None = None) -> int:
    """Runs the harness.

    Returns:
        0 if nothing was lost, torn or changed.
    """
    parser = argparse.ArgumentParser(prog="python -m dfqbench.testing.faults", description=__doc__)
    parser.add_argument("--kills", type=int, default=50, help="kills at seeded points (default 50)")
    parser.add_argument("--moments", type=int, default=10, help="kills at random moments (default 10)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--at-once", type=int, default=1, help="sweeps that are killed side by side (default 1)")
    parser.add_argument("--disks", type=int, default=len(SIZES), help=f"full disks, at most {len(SIZES)} (default)")
    asked = parser.parse_args(arguments)
    plan = Disturbance(asked.kills, asked.moments, asked.seed, asked.at_once, asked.disks)
    with scratch() as name:
        findings = disturb(Path(name), plan)
    _print("\n".join(report(findings)))
    return int(bool(findings.lost or findings.torn or findings.wrong))


@dataclass(frozen=True, slots=True)
class Disturbance:
    """What to do to sweeps.

    Attributes:
        kills: kills at seeded points.
        moments: kills at random moments.
        seed: of both.
        at_once: sweeps that are killed side by side.
        disks: full disks; with any, an unreadable folder too.
    """

    kills: int
    moments: int = 0
    seed: int = 0
    at_once: int = 1
    disks: int = 0


def disturb(work: Path, plan: Disturbance) -> Findings:
    """Runs the undisturbed sweep, then the disturbed ones.

    Args:
        work: an empty folder.
        plan: what to do.

    Raises:
        RuntimeError: a sweep does not complete on re-run, or shows its user a traceback.
    """
    grid = work / "grid.toml"
    grid.write_text(GRID, encoding="utf-8")
    quiet = Sweep(work / "quiet", grid)
    done = quiet.run()
    if done.returncode != 0:
        raise RuntimeError(f"the undisturbed sweep failed:\n{done.stderr}")
    _print("undisturbed sweep: complete")
    findings = Findings()
    faults = choose(plan.kills, plan.seed)
    parts = [faults[first :: plan.at_once] for first in range(plan.at_once)]

    def kill(number: int) -> Findings:
        mine = Findings()
        kill_at_points(parts[number], work / f"part-{number}", quiet, mine, _print)
        return mine

    with ThreadPoolExecutor(plan.at_once) as pool:
        for mine in pool.map(kill, range(plan.at_once)):
            findings.merge(mine)
    kill_at_moments(plan.moments, plan.seed, work, quiet, findings=findings, say=_print)
    if plan.disks:
        full_disks(work, quiet, findings, _print, SIZES[-plan.disks :])
        unreadable_folder(work, quiet, findings, _print)
    return findings


def report(findings: Findings) -> list[str]:
    """The counts, a line each."""
    kinds = ", ".join(f"{kind} {count}" for kind, count in findings.injected.items())
    table = "equal to the undisturbed ones, digit for digit" if not findings.wrong else "different:"
    return [
        f"faults injected: {sum(findings.injected.values())} ({kinds})",
        f"cells lost: {findings.lost}",
        f"records torn: {findings.torn}",
        f"tables and students: {table}",
        *(f"  {line}" for line in findings.wrong),
    ]


def _print(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    raise SystemExit(main())
