"""`dfqbench bench`: measures, saves, and prints ratios."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner, Result

from dfqbench.api import InputError, ModelCard, Precision, UsageError
from dfqbench.cli import bench
from dfqbench.testing.bench import growth, networks
from dfqbench.testing.bench.apart import held_at_once
from dfqbench.testing.bench.measure import kinds, measure

TOY = networks.Shape("toy", ModelCard((3, 8, 8), networks.MEAN, networks.STD, 10), 8, 1)
ROW = {
    "what": "gdfq",
    "shape": "CIFAR-10 ResNet-20",
    "batch": 200,
    "precision": "mixed-bfloat16",
    "threads": 1,
    "ours": 0.5,
    "textbook": 1.5,
    "floor": 0.45,
}


def run(*arguments: str | Path) -> Result:
    app = typer.Typer()
    bench.register(app)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.parametrize("content", [{"rows": [ROW]}, {"benchmarks": [{"extra_info": ROW}]}])
def test_a_saved_bench_is_shown_beside_its_bars(content: object, tmp_path: Path) -> None:
    (tmp_path / "bench.json").write_text(json.dumps(content))
    line = run("--read", tmp_path / "bench.json").stdout.splitlines()[-1]
    # Three times the textbook misses four; 1.11 times the bare networks is within 1.3.
    assert [cell.strip() for cell in line.split("|")[6:-3]] == ["500 ms", "3.00 !", ">= 4", "1.11", "<= 1.3"]


@pytest.mark.parametrize(("device", "shown"), [("cpu", "1 thread"), ("NVIDIA H100", "NVIDIA H100")])
def test_a_row_says_what_it_was_measured_on(device: str, shown: str, tmp_path: Path) -> None:
    (tmp_path / "bench.json").write_text(json.dumps({"rows": [ROW | {"device": device}]}))
    line = run("--read", tmp_path / "bench.json").stdout.splitlines()[-1]
    assert line.split("|")[5].strip() == shown


@pytest.mark.parametrize(
    ("device", "message"), [("tpu", "does not know the device 'tpu'"), ("cuda", "torch sees no CUDA device here")]
)
def test_a_device_that_is_not_there_is_refused(device: str, message: str) -> None:
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(UsageError, match=message):
        raise run("--device", device).exception or AssertionError


@pytest.mark.parametrize(("ours", "shown"), [(99.0, "99"), (101.0, "101 !")])
def test_a_step_that_needs_more_memory_than_the_textbook_is_marked(ours: float, shown: str, tmp_path: Path) -> None:
    row = ROW | {"ours_mib": ours, "textbook_mib": 100.0}
    (tmp_path / "bench.json").write_text(json.dumps({"rows": [row]}))
    line = run("--read", tmp_path / "bench.json").stdout.splitlines()[-1]
    assert [cell.strip() for cell in line.split("|")[-3:-1]] == [shown, "100"]


def test_memory_is_what_tensors_hold_at_once() -> None:
    mib = 2**18  # float32

    def step() -> None:
        kept = torch.ones(3 * mib)
        large = torch.ones(10 * mib)
        del large
        torch.ones(5 * mib).add_(kept[:1])

    assert held_at_once(step) == pytest.approx(13, abs=0.1)
    assert held_at_once(step) == held_at_once(step)
    assert held_at_once(lambda: None) == 0


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"rows": [{"what": "gdfq"}]}', '{"rows": 3}'])
def test_another_file_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "bench.json").write_text(text)
    assert isinstance(run("--read", tmp_path / "bench.json").exception, InputError)


@pytest.mark.parametrize("arguments", [("--steps", "gdqf"), ("--shapes", "cifr")])
def test_unknown_names(arguments: tuple[str, str]) -> None:
    error = run(*arguments).exception
    assert isinstance(error, UsageError)
    assert "did you mean" in str(error)


def test_steps_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(networks.SHAPES, "cifar", TOY)
    done = run("--out", tmp_path / "bench.json", "--steps", "gdfq", "--threads", "1")
    assert done.exception is None
    rows = json.loads((tmp_path / "bench.json").read_text())["rows"]
    assert [row["what"] for row in rows] == ["gdfq"]
    assert all(row["ours_mib"] > 0 for row in rows)
    assert all(min(row["ours"], row["textbook"], row["floor"]) > 0 for row in rows)
    assert run("--read", tmp_path / "bench.json").stdout == done.stdout


@pytest.mark.parametrize("kind", kinds())
def test_every_step_has_its_contestants(kind: str) -> None:
    row = measure(kind, TOY, Precision.MIXED_BFLOAT16, rounds=1)
    assert min(row.ours, row.textbook, row.floor) > 0


def test_growth_is_told_as_ratios(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = growth.Setting(batch=4, side=8, layers=8)
    monkeypatch.setattr(growth, "SERIES", {"bit-widths": (1, 3)})
    monkeypatch.setattr(growth, "growth", partial(growth.growth, base=small))
    done = run("--growth", "--out", tmp_path / "growth.json")
    assert done.exception is None, done.exception
    one, three = json.loads((tmp_path / "growth.json").read_text())["growth"]
    assert (one["value"], one["ratio"], three["value"]) == (1, 1.0, 3)
    assert three["seconds"] > 0
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines()]
    assert lines[-2][:2] == ["bit-widths", "1"]
    assert lines[-2][3] == "1.00"
    assert lines[-1][:2] == ["bit-widths", "3"]
