"""Decoded evaluation images: the same pixels, without decoding."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from typer.testing import CliRunner, Result

from dfqbench.api import InputError, ModelCard, UsageError
from dfqbench.cli import decode
from dfqbench.targets.decoded import checked, decoded
from dfqbench.targets.evaluation import load_evaluation
from dfqbench.targets.pixels import FolderPixels
from dfqbench.targets.spec import DatasetSpec

CARD = ModelCard((3, 16, 16), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 1000)
WNIDS = ("n01440764", "n01443537", "n01484850")

MANIFEST = """
[datasets.part]
kind = "imagenet-folder"
evaluate = "val"
classes = 1000
subset_of = "imagenet"

[[models]]
target = "part"
name = "torchvision:resnet18"
random_seed = 0
input_size = 16
mean = [0.5, 0.5, 0.5]
std = [0.5, 0.5, 0.5]
"""


@pytest.fixture
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DatasetSpec:
    monkeypatch.setenv("DFQBENCH_DECODED", str(tmp_path / "decoded"))
    random = np.random.default_rng(0)
    for wnid, index in itertools.product(WNIDS, range(3)):
        (tmp_path / "val" / wnid).mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 256, (24, 30 + index, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "val" / wnid / f"{index}.png")
    return DatasetSpec("part", "imagenet-folder", tmp_path / "val", None, 1000, subset_of="imagenet")


def images(dataset: DatasetSpec, limit: int | None = None) -> torch.Tensor:
    return torch.cat([batch for batch, _ in load_evaluation(dataset, CARD, limit).batches(4)])


def test_the_same_images_and_nothing_is_decoded(dataset: DatasetSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    found = checked(dataset, decoded(dataset, CARD))
    before, few = images(dataset), images(dataset, 5)
    found.write()
    assert found.path.stat().st_size >= found.bytes == 9 * 16 * 16 * 3
    monkeypatch.setattr(FolderPixels, "_decode", None)
    monkeypatch.setattr("dfqbench.targets.evaluation.MEMORY_LIMIT", 0)
    assert torch.equal(images(dataset), before)
    assert torch.equal(images(dataset, 5), few)
    assert [path.suffix for path in found.path.parent.iterdir()] == [".npy"]


def test_another_file_or_a_changed_folder_is_not_used(dataset: DatasetSpec) -> None:
    found = checked(dataset, decoded(dataset, CARD))
    found.write()
    whole = found.path.read_bytes()
    before = images(dataset)
    for bad in (b"", b"no array", whole[:-1]):
        found.path.write_bytes(bad)
        assert found.open() is None
        assert torch.equal(images(dataset), before)
    np.save(found.path, np.zeros((1, 16, 16, 3), dtype=np.uint8))
    assert found.open() is None
    assert dataset.evaluate is not None
    (dataset.evaluate / WNIDS[0] / "0.png").unlink()
    again = checked(dataset, decoded(dataset, CARD))
    assert again.path != found.path
    larger = ModelCard((3, 20, 20), CARD.mean, CARD.std, 1000)
    assert checked(dataset, decoded(dataset, larger)).path != again.path


def test_nothing_is_left_where_an_image_is_broken(dataset: DatasetSpec) -> None:
    assert dataset.evaluate is not None
    (dataset.evaluate / WNIDS[1] / "1.png").write_bytes(b"no image")
    found = checked(dataset, decoded(dataset, CARD))
    with pytest.raises(InputError, match="cannot read the image"):
        found.write()
    assert list(found.path.parent.iterdir()) == []


def test_a_full_disk_is_told_before(dataset: DatasetSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
    with pytest.raises(UsageError, match="GiB are needed"):
        checked(dataset, decoded(dataset, CARD)).write()


def run(*arguments: str | Path) -> Result:
    app = typer.Typer()
    app.command()(decode.decode)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_command_says_the_size_first(dataset: DatasetSpec) -> None:
    assert dataset.evaluate is not None
    folder = dataset.evaluate.parent
    (folder / "targets.toml").write_text(MANIFEST)
    command = ("part", "--data", folder)
    assert run(*command).stdout.startswith("would be written with --yes: 9 images of 16x16, 0 MiB, at ")
    assert run(*command, "--yes").stdout.startswith("written: ")
    assert run(*command).stdout.startswith("already there: ")
    assert run(*command, "--remove").stdout.startswith("removed: ")
    assert isinstance(run("digits").exception, InputError)


def test_digits_need_no_decoding() -> None:
    digits = DatasetSpec("digits", "digits", None, None, 10)
    assert decoded(digits, ModelCard((1, 8, 8), (0.5,), (0.5,), 10)) is None
