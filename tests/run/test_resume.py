from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from attempts import PLUGINS, SMALL, StopsAt, attempt, cell_of, content, job_of, measured, result_of
from dfqbench.plugins import Plugins, load_plugins
from dfqbench.run.execute.events import Finished, Interrupted
from dfqbench.run.store.status import SHARED

# Small batches, several of them, and every loss from the start.
SETTINGS = {
    "zeroq": ("zeroq.images=48", "zeroq.batch=24"),
    "dffg": ("dffg.images=96", "dffg.batch=16", "dffg.iterations=500"),
    "clusterq": ("clusterq.centroid_start=0", "clusterq.grouping=single_class"),
    "temporal": ("temporal.margin_start=0",),
}
READS = 7
"""Reads of the stop flag in one attempt: two between phases, and one a step."""


@pytest.fixture(scope="module")
def plugins() -> Plugins:
    return load_plugins([PLUGINS / "resumable.py"])


@pytest.mark.parametrize(
    "method",
    [
        *("zeroq", "dffg", "gdfq", "noise+distill", "zeroq+distill", "gdfq+calibrate", "counts-on-chance"),
        "shakes-images",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("clusterq", "acq", "temporal", "learns-twice")),
    ],
)
def test_resumed_equals_uninterrupted(method: str, tmp_path: Path, plugins: Plugins) -> None:
    cell = cell_of(method, plugins, "w3a3", *SETTINGS.get(method, ()), *SMALL)
    whole = attempt(job_of(cell, tmp_path / "whole", "attempt-1", plugins)).result
    # A source that learns before it is returned repeats the last steps of that in every attempt.
    reads, stops = READS + 5 * (method == "learns-twice"), 0
    for number in range(1, 200):
        # Every attempt gets a few steps further than the one before.
        end = attempt(job_of(cell, tmp_path / "parts", f"attempt-{number}", plugins), StopsAt(reads)).last
        if isinstance(end, Finished):
            break
        assert isinstance(end, Interrupted), end
        stops += end.kept
    result = result_of(end)
    assert stops >= 2
    # Images that were finished and saved are loaded by the last attempt.
    assert result["resumed"] >= 1 or result["reused"]
    assert content(tmp_path / "parts", f"attempt-{number}") == content(tmp_path / "whole", "attempt-1")
    assert measured(result) == measured(whole)
    # Lost steps are not charged: the times are about those of one uninterrupted attempt.
    for phase in ("synthesis", "quantization"):
        for seconds in ("seconds", "cpu_seconds"):
            assert result[seconds].get(phase, 0.0) < 10 * whole[seconds][phase] + 1.0
    assert result["reused"] or result["wall_before"] > 0


@pytest.mark.parametrize("flag", SHARED)
def test_shared_hardware_stays_flagged_after_continuing_alone(flag: str, tmp_path: Path, plugins: Plugins) -> None:
    cell = cell_of("gdfq", plugins, "w3a3", *SMALL)
    assert attempt(job_of(cell, tmp_path, "attempt-1", plugins, shared_flag=flag), StopsAt(20)).interrupted
    assert attempt(job_of(cell, tmp_path, "attempt-2", plugins)).result["flags"] == [flag]


@pytest.mark.parametrize("flag", SHARED)
def test_source_made_beside_others_flags_the_cells_that_use_it(flag: str, tmp_path: Path, plugins: Plugins) -> None:
    first, second = (cell_of("zeroq", plugins, bits, *SETTINGS["zeroq"], *SMALL) for bits in ("w3a3", "w4a4"))
    made = attempt(job_of(first, tmp_path, "attempt-1", plugins, shared_flag=flag)).result
    result = attempt(job_of(second, tmp_path, "attempt-2", plugins, checkpoints="")).result
    assert made["flags"] == result["flags"] == [flag]
    # Drawing from it costs the first a little more.
    assert 0 < result["reused"]["cpu_seconds"] == pytest.approx(made["cpu_seconds"]["synthesis"], rel=0.1)
    assert attempt(job_of(first, tmp_path / "alone", "attempt-1", plugins)).result["flags"] == []


def test_torn_checkpoint_is_replaced_by_the_older_one(tmp_path: Path, plugins: Plugins) -> None:
    cell = cell_of("gdfq", plugins, "w3a3", *SMALL)
    attempt(job_of(cell, tmp_path / "whole", "attempt-1", plugins))
    assert attempt(job_of(cell, tmp_path, "attempt-1", plugins, checkpoint_every=0.0), StopsAt(20)).interrupted
    newest = max((tmp_path / "checkpoints").glob("*.safetensors"))
    newest.write_bytes(newest.read_bytes()[:-100])
    events = attempt(job_of(cell, tmp_path, "attempt-2", plugins))
    assert events.result["resumed"] == 1
    (warning,) = events.warnings()
    assert f"{newest.name} is passed over" in warning
    assert content(tmp_path, "attempt-2") == content(tmp_path / "whole", "attempt-1")


def test_checkpoint_of_another_environment_is_passed_over(tmp_path: Path, plugins: Plugins) -> None:
    cell = cell_of("zeroq", plugins)
    attempt(job_of(cell, tmp_path, "attempt-1", plugins), StopsAt(9))
    events = attempt(job_of(cell, tmp_path, "attempt-2", plugins, environment="there", accepted_environment="there"))
    assert events.result["resumed"] == 0
    assert "made in another environment" in events.warnings()[0]


@pytest.mark.parametrize(("seconds", "numbers"), [(1e9, []), (0.0, ["10", "9"])])
def test_checkpoints_are_written_by_time_and_two_are_kept(
    seconds: float, numbers: list[str], tmp_path: Path, plugins: Plugins
) -> None:
    attempt(job_of(cell_of("zeroq", plugins), tmp_path, "attempt-1", plugins, checkpoint_every=seconds))
    kept = sorted(path.stem for path in (tmp_path / "checkpoints").glob("*.safetensors"))
    assert kept == [f"checkpoint-{number}" for number in numbers]


def test_real_data_opened_before_a_checkpoint_stays_in_the_record(tmp_path: Path, plugins: Plugins) -> None:
    cell = cell_of("peeks-early", plugins)
    data = tmp_path / "data.npz"
    data.write_bytes(b"0")
    cell = dataclasses.replace(cell, method=dataclasses.replace(cell.method, params={"path": str(data)}))
    assert attempt(job_of(cell, tmp_path, "attempt-1", plugins, guarded=[str(data)]), StopsAt(9)).interrupted
    data.unlink()
    result = attempt(job_of(cell, tmp_path, "attempt-2", plugins, guarded=[str(data)])).result
    assert result["resumed"] == 1
    assert result["real_data_opened"] == [str(data)]


def test_phase_without_states_stops_without_a_checkpoint(tmp_path: Path, plugins: Plugins) -> None:
    job = job_of(cell_of("keeps-nothing", plugins), tmp_path, "attempt-1", plugins)
    end = attempt(job, StopsAt(9)).interrupted
    assert not end.kept
    assert end.step is not None
    assert end.step < 20


def test_state_that_cannot_be_saved_is_a_warning(tmp_path: Path, plugins: Plugins) -> None:
    events = attempt(job_of(cell_of("odd-state", plugins), tmp_path, "attempt-1", plugins, checkpoint_every=0.0))
    assert events.result
    assert "plugin.thing is a object, which cannot be saved" in events.warnings()[0]
