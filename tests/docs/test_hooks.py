"""The examples of `docs/hooks.md` are short, and each does what the page says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from blocks import DOCS, blocks, write_files
from dfqbench.cli.main import main
from dfqbench.grid import load_grid
from dfqbench.models.build import build_teacher
from dfqbench.models.spec import ModelSpec
from dfqbench.plugins import Plugins, load_plugins
from dfqbench.quant import Student, parse_scheme
from dfqbench.report.literature.published import read_numbers
from dfqbench.synth.source import FixedSource
from dfqbench.targets.catalogue import Catalogue
from dfqbench.testing import conformance
from dfqbench.testing.context import ToyContext
from dfqbench.testing.toys import toy_card, toy_images, toy_network

EXAMPLES = [block for block in blocks(DOCS / "hooks.md") if block.title]


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_files(EXAMPLES, tmp_path)
    return tmp_path


def load(example: Path, file: str) -> Plugins:
    plugins = load_plugins([example / file])
    assert plugins.broken == []
    return plugins


def test_examples_are_short() -> None:
    limits = {"quantiles.py": 42}
    assert [example.title for example in EXAMPLES if len(example.lines) > limits.get(example.title, 12)] == []


def test_quantizer(example: Path) -> None:
    quantizer_cls = load(example, "quantiles.py").quantizer_class("quantiles")
    ranges = []
    for share in (0.001, 0.2):
        ctx = ToyContext(bits=parse_scheme("w4a4@gdfq"))
        quantizer = quantizer_cls(quantizer_cls.params_type(share=share))
        student = quantizer.quantize(toy_network(), FixedSource(toy_images(8)), ctx)
        assert isinstance(student, Student)
        assert (student.range_steps, student.images_seen) == (1, 64)
        ranges.append([float(q.high) for q in student.activation_quantizers()])
    assert all(wide > narrow > 0 for wide, narrow in zip(*ranges, strict=True))


@pytest.mark.slow
def test_quantizer_passes_the_checks(example: Path) -> None:
    findings = list(conformance.examine(load(example, "quantiles.py"), "quantiles"))
    assert [finding for finding in findings if finding.status != "ok"] == []


def test_range_rule(example: Path) -> None:
    load(example, "channel_mean.py")
    calibrate = load_plugins([example / "channel_mean.py"]).quantizer_class("calibrate")
    highs = []
    for rule in ("minmax", "channel-mean"):
        ctx = ToyContext(bits=parse_scheme("w4a4@gdfq"))
        quantizer = calibrate(calibrate.params_type(range=rule))
        student = quantizer.quantize(toy_network(), FixedSource(toy_images(8)), ctx)
        assert isinstance(student, Student)
        highs.append(float(student.activation_quantizers()[0].high))
    assert highs[0] > highs[1] > 0


def test_networks(example: Path) -> None:
    plugins = load(example, "plain.py")
    families = plugins.model_families
    card = toy_card(classes=7, channels=1)
    model = ModelSpec("toy", "plain:small", "plain:small", card, random_seed=0)
    network = build_teacher(model, families=families)
    assert network(torch.zeros(2, 1, 8, 8)).shape == (2, 7)
    # The evaluator builds networks from this string alone, without loading plugins.
    assert families["plain"] == f"{example / 'plain.py'}:build"


def test_target(example: Path) -> None:
    plugins = load_plugins([example / "blobs.py", example / "plain.py"])
    catalogue = Catalogue.discover([], plugins.targets.values(), plugins.model_families)
    assert [model.name for model in catalogue.models("blobs")] == ["plain:tiny"]
    assert catalogue.target("blobs").dataset is not None


def test_network_of_a_plugin_runs_on_its_target(
    example: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plugins = ["--plugin", str(example / "blobs.py"), "--plugin", str(example / "plain.py")]
    arguments = ["--grid", "smoke", "--on", "blobs", "--methods", "noise+calibrate", "--out", str(example / "runs")]
    monkeypatch.setattr("sys.argv", ["dfqbench", "run", *arguments, *plugins, "--executor", "inline"])
    status = main()
    printed = capsys.readouterr()
    assert status == 0, printed.err
    [record] = [json.loads(file.read_text()) for file in (example / "runs").rglob("record.json")]
    assert (record["model"]["ref"], record["target"]) == ("plain:tiny", "blobs")
    assert record["status"] in {"ok", "collapsed"}


def test_grid(example: Path) -> None:
    grid = load_grid("widths", load(example, "widths.py"))
    assert (grid.seeds, len(grid.parsed_schemes)) == ((0, 1, 2), 3)


def test_claims(example: Path) -> None:
    file = load(example, "printed.py").claims["mine"].path
    [claim] = [claim for claim in read_numbers(file) if claim.method == "mine"]
    assert (claim.top1, claim.place) == (68.10, "Table 2")


def test_progress(example: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cell = {"label": "zeroq"}
    plugins = load(example, "progress.py")
    for scalars in ({}, {"loss": 0.5}):
        assert plugins.observe("progress", cell=cell, phase="synthesis", step=5, total=9, scalars=scalars) == []
    assert capsys.readouterr().out == "zeroq synthesis 5/9 0.5\n"


def test_observer(example: Path) -> None:
    plugins = load(example, "notify.py")
    assert plugins.record_finished({"method": "zeroq", "status": "ok", "top1": 90.5}) == []
    assert (example / "finished.log").read_text() == "zeroq ok 90.5\n"
