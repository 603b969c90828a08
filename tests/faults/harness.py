"""The fault harness: kill toy runs, fill their disks, take their folders away, and count what that costs.

`python tests/faults/harness.py` prints the counts; its status is 1 if anything was lost, torn or changed.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from kills import choose, kill_at_moments, kill_at_points
from storage import SIZES, full_disk, unreadable_folder
from toy_run import GRID, Report, ToyRun

log = logging.getLogger(__name__)


def main() -> int:
    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stdout)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50, help="kills at seeded points (default 50)")
    parser.add_argument("--moments", type=int, default=10, help="kills at random moments (default 10)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--at-once", type=int, default=1, help="runs that are killed side by side (default 1)")
    parser.add_argument("--disks", type=int, default=len(SIZES), help=f"full disks, at most {len(SIZES)} (default)")
    with tempfile.TemporaryDirectory(prefix="dfqbench-faults-") as work:
        report = inject(Path(work), **vars(parser.parse_args()))
    log.info("%s", report)
    return int(bool(report.lost or report.torn or report.different))


def inject(work: Path, *, kills: int, moments: int = 0, seed: int = 0, at_once: int = 1, disks: int = 0) -> Report:
    """Complete an undisturbed run in `work`, then disturbed ones; the arguments are those of the command line."""
    grid = work / "grid.toml"
    grid.write_text(GRID, encoding="utf-8")
    reference = ToyRun(work / "reference", grid)
    reference.run()
    log.info("undisturbed run: complete")
    report, chosen = Report(), choose(kills, seed)

    parts = [(chosen[part::at_once], work / f"part-{part}", reference) for part in range(at_once)]
    with ThreadPoolExecutor(at_once) as pool:
        for part_report in pool.map(kill_at_points, *zip(*parts, strict=True)):
            report.add(part_report)
    report.add(kill_at_moments(moments, seed, work, reference))
    for size in SIZES[len(SIZES) - disks :]:
        report.add(full_disk(size, work, reference))
    if disks:
        report.add(unreadable_folder(work, reference))
    return report


if __name__ == "__main__":
    raise SystemExit(main())
