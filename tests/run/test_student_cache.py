from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from attempts import attempt, cell_of, data_of, job_of
from dfqbench.models.build import build_teacher
from dfqbench.plugins import load_plugins
from dfqbench.run.evaluate.accuracy import predict, predict_all
from dfqbench.run.evaluate.evaluator import Evaluator
from dfqbench.run.schedule.run_environment import Rules, RunEnvironment
from dfqbench.run.store.run_folder import RunFolder
from dfqbench.targets.evaluation import EvaluationSet, load_evaluation
from pretend import assert_parts_sum_to_wall_time, run_smoke

pytestmark = pytest.mark.timeout(600)
COSTS = ("setup", "synthesis", "paid_synthesis", "quantization")


def run(out: Path, limit: int | None, rules: Rules | None = None) -> list[dict[str, Any]]:
    options: dict[str, Any] = {"executor": "inline", "rules": rules or Rules()}
    return data_of(run_smoke(out, "zeroq,noise", bits="w4a4,w2a2", limit=limit, **options))


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the batches of every pass over an evaluation set that went to its end."""
    found: list[int] = []
    plain = EvaluationSet.batches

    def counted(self: EvaluationSet, size: int, device: Any = "cpu") -> Iterator[tuple[Tensor, Tensor]]:
        yield from plain(self, size, device)
        found.append(size)

    monkeypatch.setattr(EvaluationSet, "batches", counted)
    return found


def test_more_images_need_no_training(tmp_path: Path, passes: list[int]) -> None:
    few = run(tmp_path / "one", 100)
    passes.clear()
    everything = run(tmp_path / "one", None)
    # One pass for the full-precision network, one for the four students.
    assert len(passes) == 2
    fresh_run = run(tmp_path / "two", None)
    # Two workers, each with two cells, and none for the second run.
    assert len(list((tmp_path / "one").glob("*/cells/*/attempt-*/job.json"))) == 2
    for old, found, fresh in zip(few, everything, fresh_run, strict=True):
        assert found["student_from"] == {"cell_id": old["cell_id"], "attempt": 1}
        assert (old["student_from"], fresh["student_from"]) == (None, None)
        assert (old["dataset"]["n"], found["dataset"]["n"]) == (100, 540)
        numbers = ("cell_id", "status", "top1", "correct", "coverage", "counts", "flags", "reused_from", "source_kind")
        assert {key: found[key] for key in numbers} == {key: fresh[key] for key in numbers}
        assert {key: found["seconds"][key] for key in COSTS} == {key: old["seconds"][key] for key in COSTS}
        assert found["cpu_seconds"] == old["cpu_seconds"]
        assert None not in old["cpu_seconds"].values()
        assert_parts_sum_to_wall_time(found["seconds"])
        cell = tmp_path / "one" / "smoke" / "cells" / found["cell_id"] / "attempt-1"
        assert {path.name for path in cell.iterdir()} >= {"student.safetensors", "student.json", "images.safetensors"}


@pytest.mark.slow
def test_fresh_runs_and_oracles_train_again(tmp_path: Path) -> None:
    run(tmp_path, 100)
    for rules in (Rules(fresh=True), Rules(oracle=2)):
        assert {record["student_from"] for record in run(tmp_path, None, rules)} == {None}


@pytest.mark.slow
def test_failed_evaluation_is_repeated_without_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("dfqbench.run.evaluate.evaluator.measure_coverage", lambda *_: 1 / 0)
        failed = run(tmp_path, 100)
    assert {record["status"] for record in failed} == {"failed"}
    for record in failed:
        assert record["error"]["phase"] == "evaluation"
        # The costs of the training are known.
        assert record["seconds"]["quantization"] > 0
    again = run(tmp_path, 100, Rules(retry=frozenset({"failed"})))
    assert {record["status"] for record in again} <= {"ok", "collapsed"}
    assert [record["student_from"]["attempt"] for record in again] == [1] * 4
    assert len(list(tmp_path.glob("*/cells/*/attempt-*/job.json"))) == 2


def test_several_networks_are_evaluated_in_one_pass(passes: list[int]) -> None:
    networks = [torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)) for _ in range(3)]
    cell = cell_of("noise", load_plugins())
    assert cell.model is not None
    data = load_evaluation(cell.dataset, cell.model.card)
    networks.append(build_teacher(cell.model, "cpu", {}))  # type: ignore[arg-type]
    predictions = predict_all(networks, data, torch.device("cpu"))
    assert len(passes) == 1
    for network, found in zip(networks, predictions, strict=True):
        assert torch.equal(found.top1, predict(network, data, torch.device("cpu")).top1)


def test_unreadable_student_does_not_affect_others(tmp_path: Path) -> None:
    plugins = load_plugins()
    cell = cell_of("noise", plugins)
    folders = [tmp_path / name for name in ("attempt-1", "attempt-2")]
    for folder in folders:
        assert attempt(job_of(cell, tmp_path, folder.name, plugins)).result
    (folders[0] / "student.safetensors").write_bytes(b"0")
    request = RunEnvironment(RunFolder(tmp_path), plugins, "cpu").request(cell, folders[0])
    attempts = [{"folder": str(folder), "scheme": cell.scheme.as_dict()} for folder in folders]
    request |= {"op": "evaluate", "attempts": attempts}
    first, second = Evaluator(1, "cpu").answer(request)["students"]
    assert "cannot be read" in first["error"]["message"]
    assert 0 <= second["top1"] <= 100
