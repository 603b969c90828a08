"""`python -m dfqbench.testing.faults`: injects faults into toy sweeps and prints what they cost."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from dfqbench.testing.faults.catalogue import choose
from dfqbench.testing.faults.kills import kill_at_moments, kill_at_points
from dfqbench.testing.faults.storage import full_disks, scratch, unreadable_folder
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
    parser.add_argument("--no-storage", action="store_true", help="leave out full disks and unreadable folders")
    asked = parser.parse_args(arguments)
    with scratch() as name:
        findings = disturb(Path(name), asked.kills, asked.moments, asked.seed, storage=not asked.no_storage)
    _print("\n".join(report(findings)))
    return int(bool(findings.lost or findings.torn or findings.wrong))


def disturb(work: Path, kills: int, moments: int, seed: int, *, storage: bool) -> Findings:
    """Runs the undisturbed sweep, then the disturbed ones.

    Args:
        work: an empty folder.
        kills: kills at seeded points.
        moments: kills at random moments.
        seed: of both.
        storage: whether to disturb the disk too.

    Raises:
        RuntimeError: a sweep does not complete on re-run, or shows its user a traceback.
    """
    grid = work / "grid.toml"
    grid.write_text(GRID, encoding="utf-8")
    quiet = Sweep(work / "quiet", grid)
    done = quiet.run()
    if done.returncode != 0:
        raise RuntimeError(f"the undisturbed sweep failed:\n{done.stderr}")
    findings = Findings()
    kill_at_points(choose(kills, seed), work, quiet, findings, _print)
    kill_at_moments(moments, seed, work, quiet, findings, _print)
    if storage:
        full_disks(work, quiet, findings, _print)
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
