"""No plugin that cheats or is careless gets a number that is not what it says."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import cheats
from attempts import attempt, cell_of, job_of
from cheat_kit import digits
from dfqbench.plugins import Plugins, load_plugins
from dfqbench.quant import parse_scheme
from dfqbench.run.evaluate.evaluator import Evaluator
from dfqbench.run.execute.events import Event, Failed
from dfqbench.run.schedule.run_environment import RunEnvironment
from dfqbench.run.store.run_folder import RunFolder

pytestmark = pytest.mark.slow

FILE = Path(inspect.getfile(cheats))
PLUGINS = load_plugins([FILE])
READERS = (
    *("opens", "opens-low", "gzip-opens", "loads-digits", "mapped"),
    *("through-proc", "symbolic-link", "hard-link", "in-a-thread"),
)
MODULES = ("teacher-itself", "own-module", "by-batch-size", "by-statistics")
FAILING = ("half-the-images", "half-precision", "default-type-changed")
"""Cheats that end with an error of another kind than a broken rule."""
REBUILT = ("relabelled", "widened", "student-class", "float-network")
"""Cheats that the evaluation undoes: it builds the student anew, under the cell's scheme, from the saved tensors."""
INVALID = sorted({*cheats.CHEATS} - {*READERS, *MODULES, *FAILING, *REBUILT})


@pytest.fixture(autouse=True)
def _torch_as_before() -> Iterator[None]:
    dtype, gradients = torch.get_default_dtype(), torch.is_grad_enabled()
    yield
    torch.set_default_dtype(dtype)
    torch.set_grad_enabled(gradients)
    torch.set_autocast_enabled("cpu", False)


def end_of(method: str, folder: Path, plugins: Plugins = PLUGINS) -> Event:
    job = job_of(cell_of(method, plugins, "w2a2"), folder, "attempt", plugins, guarded=[digits()])
    return attempt(job).last


@pytest.mark.parametrize("method", INVALID)
def test_broken_rule_makes_the_record_invalid(method: str, tmp_path: Path) -> None:
    end = end_of(method, tmp_path)
    assert isinstance(end, Failed), end
    assert (end.status, end.type) == ("invalid", "Invalid"), end.message


@pytest.mark.parametrize("method", FAILING)
def test_contract_that_is_not_kept_fails(method: str, tmp_path: Path) -> None:
    end = end_of(method, tmp_path)
    assert isinstance(end, Failed), end
    assert end.status in {"failed", "invalid"}


@pytest.mark.parametrize("method", READERS)
def test_opened_data_is_recorded(method: str, tmp_path: Path) -> None:
    end = end_of(method, tmp_path)
    assert (end.so_far if isinstance(end, Failed) else end.result)["real_data_opened"]  # type: ignore[union-attr]


@pytest.mark.parametrize("method", MODULES)
def test_operands_of_own_modules_are_measured_in_every_pass(method: str, tmp_path: Path) -> None:
    evaluation = end_of(method, tmp_path).result["evaluation"]  # type: ignore[union-attr]
    assert "of the multiply-accumulates, not " in evaluation["violations"][0]


@pytest.mark.parametrize("method", [*REBUILT, "noise"])
def test_evaluated_student_has_the_cells_scheme(method: str, tmp_path: Path) -> None:
    cell = cell_of(method, PLUGINS, "w2a2")
    attempt(job_of(cell, tmp_path, "attempt", PLUGINS))
    request = RunEnvironment(RunFolder(tmp_path), PLUGINS, "cpu").request(cell, tmp_path)
    request |= {"op": "evaluate", "attempts": [{"folder": str(tmp_path / "attempt"), "scheme": cell.scheme.as_dict()}]}
    (answer,) = Evaluator(1, "cpu").answer(request)["students"]
    assert answer.get("top1", 0.0) < 50 or answer["violations"]


@pytest.mark.parametrize(
    ("forged", "message"),
    [
        (
            {"scheme": parse_scheme("w8a8").as_dict()},
            "the saved student's scheme is w8a8@gdfq, its cell's is w2a2@gdfq",
        ),
        (
            {"model": {"ref": "digits:other"}},
            "the saved student's network, digits:resnet8 (digits:other), is not its cell's",
        ),
    ],
)
def test_forged_description_is_invalid(forged: dict[str, Any], message: str, tmp_path: Path) -> None:
    cell = cell_of("noise", PLUGINS, "w2a2")
    attempt(job_of(cell, tmp_path, "attempt", PLUGINS))
    file = tmp_path / "attempt" / "student.json"
    data = json.loads(file.read_text())
    file.write_text(json.dumps(data | {key: data[key] | value for key, value in forged.items()}))
    request = RunEnvironment(RunFolder(tmp_path), PLUGINS, "cpu").request(cell, tmp_path)
    request |= {"op": "evaluate", "attempts": [{"folder": str(tmp_path / "attempt"), "scheme": cell.scheme.as_dict()}]}
    (answer,) = Evaluator(1, "cpu").answer(request)["students"]
    assert answer["status"] == "invalid"
    assert message in answer["error"]["message"]
