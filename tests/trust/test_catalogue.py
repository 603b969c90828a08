"""A grid of plugins that cheat or are careless, in real workers: none is `ok` with a wrong number, all neighbours stay.

A sample runs with the slow tests; `tox -e trust` runs all.
"""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

import cheats
import process_cheats
from dfqbench.run.store.record import Record
from dfqbench.run.store.run_folder import RunFolder
from dfqbench.run.worker.landlock import landlock_version
from pretend import run_smoke

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not landlock_version(), reason="this kernel has no Landlock"),
]

FILES = [Path(inspect.getfile(module)) for module in (cheats, process_cheats)]
SAMPLE = (
    *("cat", "forked", "foreign-open", "looks-in-memory", "disarms-the-guard", "falsifies-record-and-digest"),
    *("removes-neighbours", "forged-events", "relabelled"),
)
ALL = (*cheats.CHEATS, *process_cheats.CHEATS)
CHOSEN = ALL if os.environ.get("DFQBENCH_TRUST") == "all" else SAMPLE
HARMLESS = frozenset(
    {"relabelled", "widened", "student-class", "float-network", "saved-otherwise", "patches-torch"}
    | {"changes-folder", "logs-much", "stops-clocks"}
)
"""Cheats that change nothing: the student is built anew under the cell's scheme and evaluated elsewhere."""
HONEST = ("noise", "zeroq", "real")
GUESS = 50.0
"""Percent; at W2A2 a student of noise has a third, the full-precision network 99."""


def run(folder: Path, methods: Sequence[str]) -> dict[str, Record]:
    """Run methods at W2A2 in one grid, and return their records."""
    plugins = [argument for file in FILES for argument in ("--plugin", str(file))]
    grid = ["run", "--grid", "smoke", "--bits", "w2a2", "--methods", ",".join(methods), "--jobs", "2"]
    command = [sys.executable, "-m", "dfqbench", *grid, *plugins, "--name", "trust", "--out", str(folder)]
    paths = [str(FILES[0].parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode in {0, 1}, done.stderr
    records = [record for record, _ in RunFolder(folder / "trust").records() if record is not None]
    return {record.method: record for record in records}


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Record]:
    """Records of a run without cheats, in this process."""
    out = tmp_path_factory.mktemp("honest")
    summary = run_smoke(out, ",".join(HONEST), bits="w2a2", limit=None, executor="inline")
    return {record.method: record for record in summary.records}


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Record]:
    return run(tmp_path_factory.mktemp("all"), [*HONEST[:2], *CHOSEN, *HONEST[2:]])


@pytest.mark.parametrize("name", CHOSEN)
def test_no_cheat_has_a_wrong_number(name: str, records: dict[str, Record]) -> None:
    record = records[name]
    if name in HARMLESS and record.status == "ok":
        assert record.top1 is not None
        assert record.top1 < GUESS
        assert (record.seconds.wall or 0.0) > (record.seconds.quantization or 0.0) > 0.0
    else:
        assert record.status not in {"ok", "collapsed"}, record.error
        assert record.error is not None


def test_refused_file_has_a_hint(records: dict[str, Record]) -> None:
    assert "plugin code may read its own files and installed packages only" in str(records["disarms-the-guard"].error)


@pytest.mark.parametrize("name", HONEST)
def test_neighbours_keep_their_numbers(name: str, records: dict[str, Record], honest: dict[str, Record]) -> None:
    assert records[name].status == honest[name].status == "ok"
    assert records[name].correct == honest[name].correct
    assert (records[name].protection, records[name].foreign_calls) == ("landlock", [])
