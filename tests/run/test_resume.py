"""Going on from a checkpoint: bit for bit what an undisturbed attempt gives, for every method."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from attempts import PLUGINS, StopsAt, attempt, cell_of, content, job_of, measured, result_of
from dfqbench.plugins import load_plugins
from dfqbench.run.execute.events import Finished, Interrupted

EVERYTHING = (
    "zeroq",
    "dffg",
    "gdfq",
    "clusterq",
    "acq",
    "temporal",
    "noise+distill",
    "zeroq+distill",
    "gdfq+calibrate",
    "counts-on-chance",
    "learns-twice",
    "shakes-images",
)


# Small batches, several of them, and every loss at work from the start.
SETTINGS = {
    "zeroq": ("zeroq.images=48", "zeroq.batch=24"),
    "dffg": ("dffg.chains=32", "dffg.batch=16", "dffg.iterations=500", "dffg.variability=pixel"),
    "clusterq": ("clusterq.cluster_start=0",),
    "temporal": ("temporal.margin_start=0",),
}
LOOKS = 7
"""Looks at the stop flag in one leg: two between phases, and one a step."""
SMALL = ("distill.batch_few_classes=16", "calibrate.generator_batch=16", "calibrate.images=32")


@pytest.mark.parametrize("method", EVERYTHING)
def test_resumed_equals_uninterrupted(method: str, tmp_path: Path) -> None:
    plugins = load_plugins([PLUGINS / "resumable.py"])
    cell = cell_of(method, plugins, "w3a3", *SETTINGS.get(method, ()), *SMALL)
    whole = attempt(job_of(cell, tmp_path / "whole", "attempt-1", plugins)).result
    # A source that learns before it is handed on repeats the last steps of that in every leg.
    looks, stops = LOOKS + 5 * (method == "learns-twice"), 0
    for number in range(1, 200):
        # Every leg gets a few steps further than the one before.
        end = attempt(job_of(cell, tmp_path / "parts", f"attempt-{number}", plugins), StopsAt(looks)).last
        if isinstance(end, Finished):
            break
        assert isinstance(end, Interrupted), end
        stops += end.kept
    result = result_of(end)
    assert stops >= 2
    # Where the images were finished and saved, the last leg takes them from there.
    assert result["resumed"] >= 1 or result["reused"]
    assert content(tmp_path / "parts", f"attempt-{number}") == content(tmp_path / "whole", "attempt-1")
    assert measured(result) == measured(whole)
    # What was lost is nobody's; what counts is as much as in one go, give or take this machine's moods.
    for phase in ("synthesis", "quantization"):
        assert result["seconds"].get(phase, 0.0) < 10 * whole["seconds"][phase] + 1.0
    assert result["reused"] or result["wall_before"] > 0


def test_who_shared_a_gpu_once_says_so_though_it_went_on_alone(tmp_path: Path) -> None:
    plugins = load_plugins()
    cell = cell_of("gdfq", plugins, "w3a3", *SMALL)
    assert attempt(job_of(cell, tmp_path, "attempt-1", plugins, shares_gpu=True), StopsAt(20)).interrupted
    assert attempt(job_of(cell, tmp_path, "attempt-2", plugins)).result["flags"] == ["gpu_shared"]
    assert attempt(job_of(cell, tmp_path / "alone", "attempt-1", plugins)).result["flags"] == []


def test_images_made_on_a_shared_gpu_are_paid_for_as_such(tmp_path: Path) -> None:
    plugins = load_plugins()
    first = cell_of("zeroq", plugins, "w3a3", *SETTINGS["zeroq"], *SMALL)
    assert attempt(job_of(first, tmp_path, "attempt-1", plugins, shares_gpu=True)).result["flags"] == ["gpu_shared"]
    other = cell_of("zeroq", plugins, "w4a4", *SETTINGS["zeroq"], *SMALL)
    end = attempt(job_of(other, tmp_path, "attempt-2", plugins, checkpoints="")).result
    assert end["reused"]
    assert end["flags"] == ["gpu_shared"]


def test_a_torn_checkpoint_falls_back_to_the_older_one(tmp_path: Path) -> None:
    plugins = load_plugins()
    cell = cell_of("gdfq", plugins, "w3a3", *SMALL)
    attempt(job_of(cell, tmp_path / "whole", "attempt-1", plugins))
    assert attempt(job_of(cell, tmp_path, "attempt-1", plugins, checkpoint_every=0.0), StopsAt(20)).interrupted
    newest, older = sorted((tmp_path / "checkpoints").glob("*.safetensors"), reverse=True)
    newest.write_bytes(newest.read_bytes()[:-100])
    events = attempt(job_of(cell, tmp_path, "attempt-2", plugins))
    assert events.result["resumed"] == 1
    assert len(events.warnings()) == 1
    assert f"{newest.name} is passed over" in events.warnings()[0]
    assert content(tmp_path, "attempt-2") == content(tmp_path / "whole", "attempt-1")
    assert older.name < newest.name


def test_checkpoints_of_another_environment_are_passed_over(tmp_path: Path) -> None:
    plugins = load_plugins()
    cell = cell_of("zeroq", plugins)
    attempt(job_of(cell, tmp_path, "attempt-1", plugins), StopsAt(9))
    events = attempt(job_of(cell, tmp_path, "attempt-2", plugins, environment="there", accepted_environment="there"))
    assert events.result["resumed"] == 0
    assert "made in another environment" in events.warnings()[0]


def test_checkpoints_come_by_time_and_two_are_kept(tmp_path: Path) -> None:
    plugins = load_plugins()
    cell = cell_of("zeroq", plugins)
    attempt(job_of(cell, tmp_path, "attempt-1", plugins))
    assert list((tmp_path / "checkpoints").glob("*.safetensors")) == []
    (tmp_path / "other").mkdir()
    attempt(job_of(cell, tmp_path / "other", "attempt-1", plugins, checkpoint_every=0.0))
    kept = sorted(path.name for path in (tmp_path / "other" / "checkpoints").glob("*.safetensors"))
    assert [name.partition("-")[2].partition(".")[0] for name in kept] == ["10", "9"]


def test_what_was_opened_before_still_spoils_the_record(tmp_path: Path) -> None:
    plugins = load_plugins([PLUGINS / "resumable.py"])
    cell = cell_of("peeks-early", plugins)
    data = tmp_path / "data.npz"
    data.write_bytes(b"0")
    facts: dict[str, Any] = {"guarded": [str(data)]}
    cell = dataclasses.replace(cell, method=dataclasses.replace(cell.method, params={"path": str(data)}))
    assert attempt(job_of(cell, tmp_path, "attempt-1", plugins, **facts), StopsAt(9)).interrupted
    data.unlink()
    events = attempt(job_of(cell, tmp_path, "attempt-2", plugins, **facts))
    assert events.result["resumed"] == 1
    assert events.result["real_data_opened"] == [str(data)]


def test_a_phase_without_states_ends_all_the_same(tmp_path: Path) -> None:
    plugins = load_plugins([PLUGINS / "resumable.py"])
    cell = cell_of("keeps-nothing", plugins)
    end = attempt(job_of(cell, tmp_path, "attempt-1", plugins), StopsAt(9)).interrupted
    assert not end.kept
    assert end.step is not None
    assert end.step < 20


def test_a_state_that_cannot_be_saved_is_a_warning(tmp_path: Path) -> None:
    plugins = load_plugins([PLUGINS / "resumable.py"])
    cell = cell_of("odd-state", plugins)
    events = attempt(job_of(cell, tmp_path, "attempt-1", plugins, checkpoint_every=0.0))
    assert events.result
    assert "plugin.thing is a object, which cannot be saved" in events.warnings()[0]
