"""Cells of mixed precision: planned after the synthesis, recorded, and evaluated in another process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from attempts import PLUGINS, SMALL, StopsAt, attempt, cell_of, content, job_of, result_of
from dfqbench.api import UsageError
from dfqbench.grid import apply, load_grid, parse_selection
from dfqbench.plugins import Plugins, load_plugins
from dfqbench.quant import load_student
from dfqbench.run.evaluate import verify
from dfqbench.run.evaluate.evaluator import Evaluator
from dfqbench.run.execute.events import Failed, Finished
from dfqbench.run.plan.cell import Cell
from dfqbench.run.plan.estimate import cost_key
from dfqbench.run.schedule.run_environment import RunEnvironment
from dfqbench.run.store.run_folder import RunFolder
from dfqbench.run.worker.bit_plan import FILE
from dfqbench.targets.catalogue import Catalogue
from pretend import plan_of, run_smoke

WEIGHTS = {"conv1": 144, "layer1.0.conv1": 2304, "layer1.0.conv2": 2304, "layer2.0.conv1": 4608}
WEIGHTS |= {"layer2.0.conv2": 9216, "layer3.0.conv1": 18432, "layer3.0.conv2": 36864, "linear": 640}


@pytest.fixture(scope="module")
def plugins() -> Plugins:
    return load_plugins()


def cells(bits: str, **selection: Any) -> list[Cell]:
    return plan_of("noise", bits, on="digits", models="digits:resnet8", **selection).cells


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("mixed")
    bits = "w4a4,w3a4:size=3bit,w4a4:size=1KiB"
    run_smoke(out, "noise,none+squant", bits=bits, executor="inline")
    return out / "smoke"


@pytest.fixture(scope="module")
def records(folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    found = [json.loads(file.read_text()) for file in folder.glob("cells/*/*/record.json")]
    return {(record["label"], record["scheme"]["label"]): record for record in found}


def test_record_holds_budget_and_widths(records: dict[tuple[str, str], dict[str, Any]]) -> None:
    record, uniform = records["noise", "w3a4@gdfq:size=3bit"], records["noise", "w4a4@gdfq"]
    assert record["status"] in {"ok", "collapsed"}
    scheme = record["scheme"]
    assert scheme["mixed"] == {"budget": "size=3bit", "bits": [2, 4, 8], "divergence": "symmetric", "images": 64}
    assert list(scheme["layers"]) == list(WEIGHTS)
    assert set(scheme["layers"].values()) <= {2, 4, 8}
    assert sum(WEIGHTS[name] * bits for name, bits in scheme["layers"].items()) <= 3 * sum(WEIGHTS.values())
    assert record["levels_ok"]
    operations = record["coverage"]["bit_operations"]
    # More than with 4 bits everywhere: wide layers are those with few weights and many products.
    assert operations > uniform["coverage"]["bit_operations"]
    assert record["coverage"] == uniform["coverage"] | {"bit_operations": operations}
    # Images of one source; the cell has a worker of its own.
    assert record["source_id"] == uniform["source_id"]
    assert record["together_with"] == []
    assert record["used_images"] == uniform["used_images"] == 64
    assert "mixed" not in uniform["scheme"]


def test_saved_student_has_the_widths(folder: Path, records: dict[tuple[str, str], dict[str, Any]]) -> None:
    record = records["noise", "w3a4@gdfq:size=3bit"]
    student = load_student(folder / "cells" / record["cell_id"] / "attempt-1")
    assert {name: bits.weight for name, bits in student.layers.items()} == record["scheme"]["layers"]


@pytest.mark.parametrize("label", ["w4a4@gdfq:size=1KiB", "w3a4@gdfq:size=3bit", "w4a4@gdfq"])
def test_what_cannot_be_planned_is_a_row_and_the_others_go_on(
    label: str, records: dict[tuple[str, str], dict[str, Any]]
) -> None:
    without_images = records["none+squant", label]
    if ":" not in label:
        assert without_images["status"] in {"ok", "collapsed"}
        return
    assert without_images["status"] == "unavailable"
    assert "mixed precision needs images, and this source has none" in without_images["error"]["message"]
    if "KiB" in label:
        unreachable = records["noise", label]
        assert unreachable["status"] == "unavailable"
        assert "leaves 0.11 bits for a weight" in unreachable["error"]["message"]


def test_verification_agrees(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class InThisProcess:
        def __init__(self, _log: Path, threads: int, device: str) -> None:
            self.ask = Evaluator(threads, device).answer

        def close(self) -> None:
            pass

    monkeypatch.setattr(verify, "EvaluatorProcess", InThisProcess)
    results = verify.verify_run(RunFolder(folder), Catalogue.discover([]), {}, tmp_path)
    measured = {result.scheme: (result.verdict, result.reason) for result in results if result.label == "noise"}
    assert measured["w3a4@gdfq:size=3bit"] == ("agrees", "")


def test_evaluator_refuses_a_student_beyond_the_budget(
    folder: Path, records: dict[tuple[str, str], dict[str, Any]]
) -> None:
    record = records["noise", "w3a4@gdfq:size=3bit"]
    attempt_folder = folder / "cells" / record["cell_id"] / "attempt-1"
    (cell,) = cells("w4a4:size=4bit")
    request = {
        "op": "evaluate",
        "model": json.loads((attempt_folder / "student.json").read_text())["model"],
        "dataset": cell.dataset.as_dict(),
        "limit": 10,
        "families": {},
    }
    evaluator = Evaluator(1, "cpu")
    for bits, accepted in (("w3a4:size=3bit", True), ("w4a4:size=4bit", False), ("w4a4", False)):
        (cell,) = cells(bits)
        attempts = [{"folder": str(attempt_folder), "scheme": cell.scheme.as_dict()}]
        (answer,) = evaluator.answer(request | {"attempts": attempts})["students"]
        assert ("error" not in answer) == accepted, answer


@pytest.mark.slow
@pytest.mark.parametrize("method", ["zeroq+distill", "gdfq"])
def test_planning_leaves_no_trace_in_the_student(method: str, tmp_path: Path, plugins: Plugins) -> None:
    found = {}
    for name, bits, settings in (("plain", "w4a4", ()), ("mixed", "w4a4:size=4bit", ("mixed.bits=4,8",))):
        cell = cell_of(method, plugins, bits, *SMALL, *settings)
        found[name] = attempt(job_of(cell, tmp_path / name, "attempt-1", plugins)).result
    # The budget leaves every layer the least width.
    assert content(tmp_path / "mixed", "attempt-1") == content(tmp_path / "plain", "attempt-1")
    assert found["mixed"]["used_images"] == found["plain"]["used_images"]
    assert found["mixed"]["counts"]["images"] > found["plain"]["counts"]["images"]


@pytest.mark.slow
def test_plan_is_kept_for_an_attempt_that_continues(tmp_path: Path, plugins: Plugins) -> None:
    cell = cell_of("zeroq+distill", plugins, "w3a4:size=3bit", *SMALL)
    whole = attempt(job_of(cell, tmp_path / "whole", "attempt-1", plugins)).result
    plans = set()
    for number in range(1, 100):
        end = attempt(job_of(cell, tmp_path / "parts", f"attempt-{number}", plugins), StopsAt(9)).last
        if (file := tmp_path / "parts" / "checkpoints" / FILE).is_file():
            plans.add(file.stat().st_mtime_ns)
        if isinstance(end, Finished):
            break
    result = result_of(end)
    assert (number > 2, len(plans)) == (True, 1)
    assert content(tmp_path / "parts", f"attempt-{number}") == content(tmp_path / "whole", "attempt-1")
    shared = result["reused"]["counts"] if result["reused"] else {}
    counts = {name: count + shared.get(name, 0) for name, count in result["counts"].items()}
    assert (counts, result["used_images"]) == (whole["counts"], whole["used_images"])


def test_identity_of_the_student_holds_the_budget_and_that_of_the_images_does_not() -> None:
    plans = [cells("w4a4"), cells("w4a4:size=4bit"), cells("w4a4:bops=4bit")]
    plans.append(cells("w4a4:size=4bit", settings=["mixed.divergence=plain"]))
    found = [cell for plan in plans for cell in plan]
    assert len({cell.student_id for cell in found}) == 4
    assert len({cell.source_id for cell in found}) == 1
    assert not any(a.shares_source(b) for a in found for b in found if a is not b)


def test_time_of_a_cell_is_not_estimated_from_one_without_a_plan() -> None:
    assert cost_key(cells("w4a4")[0], "cpu") == cost_key(cells("w3a3")[0], "cpu")
    assert cost_key(cells("w4a4")[0], "cpu") != cost_key(cells("w4a4:size=4bit")[0], "cpu")


def test_student_that_is_no_student_has_no_layers_to_plan(tmp_path: Path) -> None:
    plugins = load_plugins([PLUGINS / "faulty" / "misbehaves.py"])
    cell = cell_of("own-student", plugins, "w4a4:size=4bit")
    end = attempt(job_of(cell, tmp_path, "attempt-1", plugins)).last
    assert isinstance(end, Failed)
    assert (end.status, "needs a student of ctx.prepare" in end.message) == ("unavailable", True)


def test_record_names_changed_parameters_of_the_plan(tmp_path: Path, plugins: Plugins) -> None:
    (cell,) = cells("w4a4:size=4bit", settings=["mixed.divergence=plain", "mixed.images=64"])
    record = RunEnvironment(RunFolder(tmp_path), plugins, "cpu", description={}).new_record(cell, 1)
    assert record.changed_params == ["mixed.divergence"]


def test_budget_of_a_grid_replaces_the_bits_of_weights() -> None:
    assert [cell.scheme.label for cell in cells("w4a4,w4a8@deploy", mixed="size=3bit")] == [
        "w3a4@gdfq:size=3bit",
        "w3a8@deploy:size=3bit",
    ]
    assert [cell.scheme.label for cell in cells("w4a4,w3a4", mixed="bops=4bit")] == ["w4a4@gdfq:bops=4bit"]


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        ({"mixed": "4bit"}, "'4bit' is not a budget; write size=4bit"),
        ({"mixed": "size=1bit"}, "size=1bit cannot be met; name 2 to 8 bits"),
        ({"mixed": "size=4bit", "settings": ["mixed.bits=[4]"]}, "no choice of widths; name two or more"),
        ({"mixed": "size=4bit", "settings": ["mixed.bits=4,9"]}, "no choice of widths; name two or more of 2 to 8"),
        ({"mixed": "size=2bit", "settings": ["mixed.bits=4,8"]}, "size=2bit cannot be met; name 4 to 8 bits"),
        ({"mixed": "size=4bit", "settings": ["mixed.bit=4,8"]}, "unknown parameter of mixed 'bit'"),
        ({"bits": "w4a4:size=3bit"}, "does not fit weights of 4 bits; write w3a4@gdfq:size=3bit"),
    ],
)
def test_refused_budgets(selection: dict[str, Any], message: str, plugins: Plugins) -> None:
    with pytest.raises(UsageError, match=message):
        apply(load_grid("smoke", plugins), parse_selection(**selection))
