"""Keep the records of a measured run in `results/reference`: one JSON line a finished cell. Records name the revision.

    python tools/reference.py results/runs/cifar10-own

The table is made by `dfqbench table`, from the run's folder.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from dfqbench.run.store.record import Record
from dfqbench.run.store.run_folder import RunFolder

REFERENCE = Path(__file__).parents[1] / "results" / "reference"


def lines(run: Path) -> list[str]:
    """Return the last finished record of each cell of a run's folder, in the order of labels, schemes and seeds."""
    finished: dict[str, Record] = {}
    for record, _ in RunFolder(run).records():
        if record is not None and record.top1 is not None:
            finished[record.cell_id] = record
    ordered = sorted(finished.values(), key=lambda r: (r.target, r.model.name, r.label, r.scheme.label, r.seed))
    return [json.dumps(record.as_dict(), sort_keys=True) for record in ordered]


def main() -> None:
    """Write the file of the run's name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of the run")
    run = parser.parse_args().run.resolve()
    text = "".join(f"{line}\n" for line in lines(run))
    (REFERENCE / f"{run.name}.jsonl").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
