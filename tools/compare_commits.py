"""Run the same cells with two states of the code and compare every student, image and accuracy bit for bit.

Bits differ between processors and versions of torch, so no digest is kept in the repository: both states run here.

    python tools/compare_commits.py BASE            # a commit against the work tree, all methods on digits, --exact
    python tools/compare_commits.py BASE --methods zeroq,gdfq --bits w2a2 --seeds 0-2
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[1]
METHODS = "zeroq,gdfq,clusterq,acq,dffg,temporal,noise,real,zeroq+distill,noise+distill:gdfq,gdfq+calibrate"
BITS = "w4a4,w2a2,w4a4@deploy"


def run_cells(tree: Path, out: Path, options: list[str]) -> None:
    """Run the grid with the sources of `tree`; results go to `out`.

    Raises:
        subprocess.CalledProcessError: the run failed.
    """
    path = os.pathsep.join(str(tree / name) for name in ("benchmark", "methods"))
    command = [
        sys.executable,
        "-m",
        "dfqbench",
        "run",
        "--grid",
        "smoke",
        "--out",
        str(out),
        *options,
    ]
    subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, check=True, cwd=tree)  # noqa: S603


def read_cells(out: Path) -> dict[str, tuple[dict[str, Any], Path]]:
    """Return record and folder of each finished cell, by method, scheme and seed."""
    cells = {}
    for file in sorted(out.rglob("record.json")):
        record = json.loads(file.read_text(encoding="utf-8"))
        name = f"{record['label']} {record['model']['name']} {record['scheme']['label']} seed {record['seed']}"
        cells[name] = record, file.parent
    return cells


def differences(old: Path, new: Path, file: str) -> list[str]:
    """Name the tensors of two safetensors files that are not equal bit for bit."""
    if not (old / file).exists() or not (new / file).exists():
        return [f"{file} is missing"] if (old / file).exists() != (new / file).exists() else []
    first, second = ({_stable(name): value for name, value in load_file(path / file).items()} for path in (old, new))
    # A name in one of them only is a renamed or derived value, which the answers would show.
    return [
        f"{file}: {name}" for name in sorted(first.keys() & second.keys()) if not torch.equal(first[name], second[name])
    ]


def _stable(name: str) -> str:
    return name.replace(".range.", ".")


def main() -> int:
    """Compare, print one line a cell, and return 1 where anything differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", help="commit to compare the work tree with")
    parser.add_argument("--methods", default=METHODS)
    parser.add_argument("--bits", default=BITS)
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--on", default="digits", help="target; others than digits need DFQBENCH_DATA")
    parser.add_argument("--models", help="networks of the target; the grid's by default")
    parser.add_argument("--limit", help="evaluation images; all by default")
    parser.add_argument("--fast", action="store_true", help="without --exact")
    parser.add_argument("--keep", type=Path, help="folder in which results stay; those of the base are used again")
    given = parser.parse_args()
    options = ["--methods", given.methods, "--bits", given.bits, "--seeds", given.seeds, "--on", given.on]
    for name in ("models", "limit"):
        options += [f"--{name}", getattr(given, name)] if getattr(given, name) else []
    options += [] if given.fast else ["--exact"]
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.keep or Path(temporary)
        base, work = folder / "base", folder / "work"
        shutil.rmtree(work, ignore_errors=True)
        if not read_cells(base):
            tree = Path(temporary) / "tree"
            subprocess.run(["git", "clone", "--quiet", str(ROOT), str(tree)], check=True)  # noqa: S603, S607
            subprocess.run(["git", "checkout", "--quiet", given.base], check=True, cwd=tree)  # noqa: S603, S607
            run_cells(tree, base, options)
        # A copy, so that the work tree may change while the cells run.
        for name in ("benchmark", "methods"):
            shutil.copytree(ROOT / name, Path(temporary) / "work" / name)
        run_cells(Path(temporary) / "work", work, options)
        return report(read_cells(base), read_cells(work))


def report(old: dict[str, tuple[dict[str, Any], Path]], new: dict[str, tuple[dict[str, Any], Path]]) -> int:
    """Print what differs between two runs; return 0 where nothing does."""
    bad = sorted(old.keys() ^ new.keys())
    for cell in bad:
        print(f"{cell}: only in one of the runs")  # noqa: T201
    for cell in sorted(old.keys() & new.keys()):
        (first, a), (second, b) = old[cell], new[cell]
        found = [
            name
            for name in ("status", "top1", "fp_top1", "agreement", "correct")
            if first.get(name) != second.get(name)
        ]
        found += [*differences(a, b, "student.safetensors"), *differences(a, b, "images.safetensors")]
        bad += [cell] if found else []
        print(f"{cell}: {', '.join(found) if found else 'equal'} (top-1 {second.get('top1')})")  # noqa: T201
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
