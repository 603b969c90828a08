"""What sharing a folder and planning a large grid cost; `tox -e bench` measures."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from many_peers import share_cells

PLAN = """
import resource
from dfqbench.cli.main import main
import sys
sys.argv = ["dfqbench", *"plan --grid w4a4 --on digits --models digits:resnet8".split(),
            *"--methods zeroq,acq,gdfq,dffg,clusterq --controls none".split(),
            *"--bits w3a3,w4a4,w5a5,w8a8 --seeds 0-499".split()]
try:
    main()
finally:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, file=sys.stderr)
"""


@pytest.fixture(autouse=True)
def _only_where_speed_is_measured(request: pytest.FixtureRequest) -> None:
    if not request.config.getoption("--benchmark-enable"):
        pytest.skip("measures speed: run `tox -e bench`")


def test_64_runs_share_cells_without_losing_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = share_cells(tmp_path, monkeypatch, 64, cells_each=3, seconds=25.0)
    sys.stdout.write(f"{shared.share:.0%} of the ideal time, {shared.operations:.0f} file operations a cell\n")
    assert shared.share >= 0.9
    # Each run reads the record of every cell that another has finished.
    assert shared.operations <= 6 * 64


def test_10000_cells_are_planned_within_a_gibibyte(tmp_path: Path) -> None:
    begin = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", PLAN], capture_output=True, text=True, cwd=tmp_path, check=False, timeout=300
    )
    seconds = time.monotonic() - begin
    assert "10000 cells" in done.stdout.replace(",", ""), done.stderr
    mebibytes = int(done.stderr.split()[-1])
    sys.stdout.write(f"{seconds:.1f} s, {mebibytes} MiB\n")
    assert seconds <= 10.0
    assert mebibytes <= 1024
