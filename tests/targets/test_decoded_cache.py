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
from typer.testing import CliRunner

from dfqbench.api import InputError, ModelCard, UsageError
from dfqbench.cli import decode
from dfqbench.targets.decoded_cache import decoded_cache
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


def test_cached_images_equal_decoded_ones(dataset: DatasetSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = decoded_cache(dataset, CARD)
    before, few = images(dataset), images(dataset, 5)
    cache.write()
    assert cache.path.stat().st_size >= cache.bytes == 9 * 16 * 16 * 3
    monkeypatch.setattr(FolderPixels, "_decode", None)
    monkeypatch.setattr("dfqbench.targets.evaluation.MEMORY_LIMIT", 0)
    assert torch.equal(images(dataset), before)
    assert torch.equal(images(dataset, 5), few)
    assert [path.suffix for path in cache.path.parent.iterdir()] == [".npy"]


def test_stale_or_damaged_file_is_not_used(dataset: DatasetSpec) -> None:
    cache = decoded_cache(dataset, CARD)
    cache.write()
    whole = cache.path.read_bytes()
    before = images(dataset)
    for bad in (b"", b"no array", whole[:-1]):
        cache.path.write_bytes(bad)
        assert cache.open() is None
        assert torch.equal(images(dataset), before)
    np.save(cache.path, np.zeros((1, 16, 16, 3), dtype=np.uint8))
    assert cache.open() is None
    assert dataset.evaluate is not None
    (dataset.evaluate / WNIDS[0] / "0.png").unlink()
    again = decoded_cache(dataset, CARD)
    assert again.path != cache.path
    larger = ModelCard((3, 20, 20), CARD.mean, CARD.std, 1000)
    assert decoded_cache(dataset, larger).path != again.path


def test_broken_image_leaves_no_file(dataset: DatasetSpec) -> None:
    assert dataset.evaluate is not None
    (dataset.evaluate / WNIDS[1] / "1.png").write_bytes(b"no image")
    cache = decoded_cache(dataset, CARD)
    with pytest.raises(InputError, match="cannot read the image"):
        cache.write()
    assert list(cache.path.parent.iterdir()) == []


def test_full_disk_is_reported_before_writing(dataset: DatasetSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
    with pytest.raises(UsageError, match="GiB are needed"):
        decoded_cache(dataset, CARD).write()


def test_command_writes_only_with_yes(dataset: DatasetSpec) -> None:
    assert dataset.evaluate is not None
    folder = dataset.evaluate.parent
    (folder / "targets.toml").write_text(MANIFEST)
    app, runner = typer.Typer(), CliRunner()
    app.command()(decode.decode)
    for options, line in (
        ((), "would be written with --yes: 9 images of 16x16, 0 MiB, at "),
        (("--yes",), "written: "),
        ((), "already there: "),
        (("--remove",), "removed: "),
    ):
        assert runner.invoke(app, ["part", "--data", str(folder), *options]).stdout.startswith(line)
    assert isinstance(runner.invoke(app, ["digits"]).exception, InputError)
