"""The examples of `docs/hooks.md` are short, and each does what the page says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from blocks import DOCS, blocks, write_files
from dfqbench.grid import load_grid
from dfqbench.models.build import build_teacher
from dfqbench.models.spec import ModelSpec
from dfqbench.plugins import Plugins, load_plugins
from dfqbench.quant import Student, parse_scheme
from dfqbench.report.literature.published import read_numbers
from dfqbench.synth.source import FixedSource
from dfqbench.targets.catalogue import Catalogue
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
    assert [example.title for example in EXAMPLES if len(example.lines) > 12] == []


def test_quantizer(example: Path) -> None:
    quantizer_cls = load(example, "one_image.py").quantizer_class("one-image")
    ctx = ToyContext(bits=parse_scheme("w4a4@gdfq"))
    student = quantizer_cls(quantizer_cls.params_type()).quantize(toy_network(), FixedSource(toy_images(8)), ctx)
    assert isinstance(student, Student)
    assert (student.range_steps, student.images_seen) == (1, 1)


def test_networks(example: Path) -> None:
    plugins = load(example, "plain.py")
    families = plugins.model_families
    card = toy_card(classes=7, channels=1)
    model = ModelSpec("toy", "plain:small", "plain:small", card, kwargs={"classes": 7}, random_seed=0)
    network = build_teacher(model, families=families)
    assert network(torch.zeros(2, 1, 8, 8)).shape == (2, 7)
    # The evaluator builds networks from this string alone, without loading plugins.
    assert families["plain"] == f"{example / 'plain.py'}:build"


def test_target(example: Path) -> None:
    plugins = load(example, "blobs.py")
    catalogue = Catalogue.discover([], plugins.targets.values(), families={})
    assert [model.name for model in catalogue.models("blobs")] == ["torchvision:resnet18"]
    assert catalogue.target("blobs").dataset is not None


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
