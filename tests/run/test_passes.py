"""Who computes with the compiled passes: worker and evaluator of every run on a CPU, and nobody under `--exact`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from dfqbench.cli.main import build_app
from dfqbench.native import binding, build, built
from dfqbench.quant import Student, save_student
from dfqbench.run import attempt, evaluator

HERE = built()
pytestmark = pytest.mark.skipif(HERE.path is None, reason=f"no compiled passes here: {HERE.reason}")


def libraries(out: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> dict[str, set[bool]]:
    """Whether a library was in use wherever a student was made and where it was evaluated."""
    seen: dict[str, set[bool]] = {"worker": set(), "evaluator": set()}
    keep, checked = save_student, evaluator._checked

    def kept(*args: object) -> None:
        seen["worker"].add(binding.takes("cpu"))
        keep(*args)  # type: ignore[arg-type]

    def looked(student: Student, images: torch.Tensor) -> dict[str, object]:
        seen["evaluator"].add(binding.takes("cpu"))
        return checked(student, images)

    monkeypatch.setattr(attempt, "save_student", kept)
    monkeypatch.setattr(evaluator, "_checked", looked)
    arguments = ["run", "--grid", "smoke", "--methods", "noise", "--bits", "w4a4", "--limit", "20", "--out", str(out)]
    done = CliRunner().invoke(build_app(), [*arguments, "--executor", "inline", *options])
    assert done.exit_code == 0, done.output
    return seen


def environment_of(out: Path) -> str:
    (file,) = (out / "smoke" / "environments").glob("*.json")
    text = json.loads(file.read_text())["passes"]
    assert isinstance(text, str)
    return text


def test_worker_and_evaluator_use_them_and_the_environment_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with binding.using(None):
        assert libraries(tmp_path, monkeypatch) == {"worker": {True}, "evaluator": {True}}
        assert not binding.takes("cpu")  # the process is left as it was
    assert environment_of(tmp_path) == f"compiled by {HERE.compiler}"


def test_exact_is_torchs_operations_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with binding.using(HERE.path):
        assert libraries(tmp_path, monkeypatch, "--exact") == {"worker": {False}, "evaluator": {False}}
        assert binding.takes("cpu")


def test_the_switch_is_heeded_and_makes_another_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    libraries(tmp_path, monkeypatch)
    monkeypatch.setenv(build.SWITCH, "0")
    assert libraries(tmp_path, monkeypatch) == {"worker": {False}, "evaluator": {False}}
    files = (tmp_path / "smoke" / "environments").glob("*.json")
    assert {json.loads(file.read_text())["passes"] for file in files} == {f"compiled by {HERE.compiler}", "torch"}
