"""`--oracle` from the command line to the page, with a real worker and a live source on the embedded target."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dfqbench.run.store.training_folder import TrainingFolder
from test_run_command import run

pytestmark = [pytest.mark.timeout(900), pytest.mark.slow]


def test_a_curve_ends_in_the_headline(tmp_path: Path) -> None:
    done = run(tmp_path, "--grid", "smoke", "--methods", "acq", "--bits", "w2a2", "--oracle", "3")
    assert done.returncode == 0, done.stderr
    [file] = (tmp_path / "smoke").glob("cells/*/attempt-1/record.json")
    record = json.loads(file.read_text())
    steps = [point["step"] for point in record["curve"]]
    assert 1 < len(steps) <= 3
    assert steps == sorted(steps)
    # The last snapshot is the student itself, evaluated again from its own file.
    assert record["curve"][-1]["top1"] == record["top1"]
    assert record["oracle"]["top1"] == max(point["top1"] for point in record["curve"])
    assert record["selection"] == "last"
    seconds = record["seconds"]
    parts = ("setup", "paid_synthesis", "quantization", "evaluation", "unattributed")
    assert sum(seconds[part] for part in parts) == pytest.approx(seconds["wall"], abs=1e-6)
    assert seconds["unattributed"] >= 0
    folder = TrainingFolder(file.parent)
    assert folder.students() == {}
    assert len(folder.images()) > 2
    assert list(folder.images())[-1] == steps[-1]
    assert record["source_images"] == record["counts"]["images"]
    # Keeping things changes no number.
    again = run(tmp_path, "--grid", "smoke", "--methods", "acq", "--bits", "w2a2", "--name", "plain")
    assert again.returncode == 0, again.stderr
    [file] = (tmp_path / "plain").glob("cells/*/attempt-1/record.json")
    plain = json.loads(file.read_text())
    assert plain["correct"] == record["correct"]
    assert (plain["curve"], plain["oracle"]) == (None, None)
