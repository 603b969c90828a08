"""Odd data folders, images, manifests and references: a line that names them, and never another number."""

from __future__ import annotations

import json
import os
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tests.cli.conftest as command_line
import torch
from PIL import Image
from safetensors.torch import save_file
from tests.cli.calls import CONTROL, Call, refused, write_record

from dfqbench.api.card import ModelCard
from dfqbench.api.errors import InputError, Unavailable
from dfqbench.models.build import build_teacher
from dfqbench.models.spec import ModelSpec
from dfqbench.plugins import load_plugins
from dfqbench.run.store.run_folder import RunFolder
from dfqbench.targets.catalogue import Catalogue
from dfqbench.targets.checks import check_targets
from dfqbench.targets.layouts import wnids
from dfqbench.targets.pixels import Array, open_split
from dfqbench.targets.spec import DatasetSpec, fingerprint
from dfqbench.testing.conformance.method_under_test import MethodUnderTest
from dfqbench.testing.conformance.registration import ends, light

CARD = ModelCard((3, 24, 24), (0.5,) * 3, (0.25,) * 3, 1000)
MANIFEST = """
[datasets.bars]
kind = "npz"
evaluate = "images.npz"
classes = 10

[[models]]
target = "bars"
name = "digits:resnet8"
random_seed = 0
input_size = [1, 8, 8]
mean = [0.3]
std = [0.4]
"""
PLUGIN = """
from dfqbench.api import FileOffer, hookimpl

@hookimpl
def dfqbench_targets():
    return [FileOffer("bars", {folder!r}, api=1)]
"""
call = command_line.call


@pytest.fixture
def photos(tmp_path: Path) -> DatasetSpec:
    """Three classes of ImageNet with one image each."""
    for number, wnid in enumerate(wnids()[:3]):
        (tmp_path / "data" / "val" / wnid).mkdir(parents=True)
        pixels = np.random.default_rng(number).integers(0, 256, (24, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "data" / "val" / wnid / "a.JPEG")
    val = tmp_path / "data" / "val"
    return DatasetSpec("imagenet-subset-3", "imagenet-folder", val, None, 1000, subset_of="imagenet", resize=0)


@pytest.fixture
def odd_file(photos: DatasetSpec) -> Path:
    """The path of a further image, which is not there."""
    assert photos.evaluate is not None
    return photos.evaluate / wnids()[0] / "odd.JPEG"


def decoded(dataset: DatasetSpec) -> Array:
    pixels = open_split(dataset, "evaluate", CARD)
    return np.concatenate(list(pixels.stream(range(len(pixels.labels)), 8)))


def bars(folder: Path, manifest: str = MANIFEST) -> Path:
    """A data folder with 20 images of 8x8 pixels."""
    folder.mkdir()
    images = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 1), dtype=np.uint8)
    np.savez(folder / "images.npz", x=images, y=np.arange(20) % 10)
    (folder / "targets.toml").write_text(manifest)
    return folder


def plugin_with(folder: Path) -> Path:
    file = folder.with_suffix(".py")
    file.write_text(PLUGIN.format(folder=str(folder)))
    return file


def test_dot_file_is_not_an_image(photos: DatasetSpec, odd_file: Path) -> None:
    before = decoded(photos)
    odd_file.with_name("._a.JPEG").write_bytes(b"\0\5\x16\7 of macOS")
    np.testing.assert_array_equal(decoded(photos), before)


def test_named_pipe_is_not_opened(photos: DatasetSpec, odd_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(odd_file)
    with pytest.raises(InputError, match=r"odd.JPEG is not a regular file; take it out"):
        fingerprint(photos)
    monkeypatch.setattr(Image, "open", lambda _: pytest.fail("a pipe was opened"))
    with pytest.raises(InputError, match=r"cannot read the image .*odd.JPEG: it is a named pipe"):
        open_split(photos, "evaluate", CARD).stream([1], 1).__next__()


def test_decompression_bomb_is_named(photos: DatasetSpec, odd_file: Path) -> None:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0))
    odd_file.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b""))
    with pytest.raises(InputError, match=r"cannot read the image .*odd.JPEG: Image size .* exceeds limit"):
        decoded(photos)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_image_of_more_than_8_bits_is_refused(photos: DatasetSpec, odd_file: Path, dtype: type) -> None:
    form = "PNG" if dtype is np.uint16 else "TIFF"
    Image.fromarray(np.full((24, 24), 999, dtype=dtype)).save(odd_file, form)
    with pytest.raises(InputError, match=r"odd.JPEG: its pixels have more than 8 bits"):
        decoded(photos)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "CMYK", "LA"])
def test_image_of_8_bits_or_fewer_is_read_as_before(photos: DatasetSpec, odd_file: Path, mode: str) -> None:
    form = {"CMYK": "JPEG"}.get(mode, "PNG")
    assert photos.evaluate is not None
    with Image.open(photos.evaluate / wnids()[1] / "a.JPEG") as file:
        file.convert(mode).save(odd_file, form)
    with Image.open(odd_file) as file:
        np.testing.assert_array_equal(decoded(photos)[1], np.asarray(file.convert("RGB")))


def test_dangling_link_is_refused_before_anything_runs(call: Call, photos: DatasetSpec, odd_file: Path) -> None:
    odd_file.symlink_to("/unmounted/odd.JPEG")
    data = ("--data", odd_file.parents[2])
    reference = "torchvision:resnet18?weights=random"
    line = refused(call(*CONTROL, "--on", photos.name, "--models", reference, *data), "repair it, or take it out")
    assert f"cannot read {odd_file}, a link to /unmounted/odd.JPEG: No such file" in line
    findings = {finding.what: finding for finding in check_targets(Catalogue.discover([odd_file.parents[2]]), 0)}
    assert findings[photos.name].status == "broken"
    assert "/unmounted/odd.JPEG" in findings[photos.name].detail


def test_class_folder_that_is_a_link_is_part_of_the_identity(photos: DatasetSpec, tmp_path: Path) -> None:
    assert photos.evaluate is not None
    before, folder = fingerprint(photos), photos.evaluate / wnids()[0]
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    assert fingerprint(photos) == before
    (tmp_path / "elsewhere" / "another.JPEG").write_bytes(b"image")
    assert fingerprint(photos) != before


@pytest.mark.timeout(20)
def test_link_back_into_the_folder_is_refused(photos: DatasetSpec) -> None:
    assert photos.evaluate is not None
    (photos.evaluate / "all").symlink_to(photos.evaluate)
    with pytest.raises(InputError, match=r"all is the same folder as .*val; take the link out"):
        fingerprint(photos)


def test_class_folder_that_leads_nowhere_is_refused(call: Call, photos: DatasetSpec, tmp_path: Path) -> None:
    assert photos.evaluate is not None
    (photos.evaluate / wnids()[3]).symlink_to("unmounted")
    output = call("plan", "--on", "imagenet-subset-3", "--data", tmp_path / "data")
    assert output.status == 2
    assert f"{wnids()[3]} is a link to unmounted, which is not there; repair it, or take it out" in output.err


@pytest.mark.timeout(20)
@pytest.mark.parametrize(("kind", "file"), [("torchvision", "test_batch"), ("npz", "")])
def test_pipe_as_data_file_is_refused(kind: Any, file: str, tmp_path: Path) -> None:
    path = tmp_path / (file or "x.npz")
    os.mkfifo(path)
    with pytest.raises(InputError, match=f"{path.name} is not a regular file"):
        fingerprint(DatasetSpec("cifar10", kind, tmp_path if file else path, None, 10))


def test_fingerprint_of_sound_folders_is_unchanged(tmp_path: Path) -> None:
    """Records identify an evaluation set by it."""
    (tmp_path / "n01440764").mkdir()
    (tmp_path / "n01440764" / "a.JPEG").write_bytes(b"abc")
    (tmp_path / ".DS_Store").write_bytes(b"x")
    folder = DatasetSpec("toy", "imagenet-folder", tmp_path, None, 1000)
    assert fingerprint(folder) == "8bd265e3342ba0469a002047d9b2f1ac28469df321bbc0c6b2ed069f44e07697"


@pytest.mark.parametrize(
    ("old", "new", "part"),
    [
        ("mean = [0.3]", "mean = [nan]", "mean must be finite"),
        ("std = [0.4]", "std = [inf]", "std must be finite"),
        ("std = [0.4]", "std = [0.4]\nkwargs = { rate = nan }", "nan is no argument"),
        ("std = [0.4]", "std = [0.4]\nargs = [[-inf]]", "-inf is no argument"),
    ],
)
def test_manifest_value_that_is_not_finite(call: Call, tmp_path: Path, old: str, new: str, part: str) -> None:
    folder = bars(tmp_path / "data", MANIFEST.replace(old, new))
    line = refused(call(*CONTROL, "--on", "bars", "--data", folder), f"model 'digits:resnet8': {part}")
    assert str(folder / "targets.toml") in line


def test_reference_value_that_is_not_finite(call: Call) -> None:
    reference = "torchvision:resnet18?weights=random&{}"
    models = (*CONTROL, "--on", "digits", "--models")
    refused(call(*models, reference.format("mean=[NaN]")), "mean [NaN] is not a list of numbers")
    refused(call(*models, reference.format("mean=[1e999]")), "mean [1e999] is not a list of numbers")
    (model,) = Catalogue.discover([]).models("digits", [reference.format("rate=NaN&width=2&depth=Infinity")])
    assert isinstance(model, ModelSpec)
    assert model.kwargs == {"rate": "NaN", "width": 2, "depth": "Infinity"}


@pytest.mark.parametrize("key", ["evaluate", "train"])
def test_plugin_manifest_names_no_absolute_path(call: Call, tmp_path: Path, key: str) -> None:
    elsewhere = bars(tmp_path / "elsewhere") / "images.npz"
    manifest = MANIFEST.replace('evaluate = "images.npz"', f'evaluate = "images.npz"\ntrain = "{elsewhere}"')
    if key == "evaluate":
        manifest = MANIFEST.replace("images.npz", str(elsewhere))
    plugin = plugin_with(bars(tmp_path / "bars", manifest))
    problem = f"dataset 'bars': {key}: '{elsewhere}' is absolute; give a path relative to the manifest"
    assert problem in call("models", "list", "--plugin", plugin).err
    assert "bars" in Catalogue.discover([tmp_path / "bars"]).targets, "a user's manifest may name one"


def test_broken_manifest_of_a_plugin_is_shown_by_run_and_plan(call: Call, tmp_path: Path) -> None:
    manifest = MANIFEST.replace("digits:resnet8", "digits:resnet8?classes=10")
    plugin = plugin_with(bars(tmp_path / "bars", manifest))
    reason = "data folder 'bars' of a plugin: "
    output = call(*CONTROL, "--on", "bars", "--plugin", plugin)
    assert output.status == 2
    problem, error = output.err.splitlines()
    assert problem.startswith(reason)
    assert "write arguments as kwargs" in problem
    assert "unknown target 'bars'" in error
    arguments = (*CONTROL[1:], "--on", "digits", "--plugin", plugin)
    planned = call("plan", *arguments)
    assert (planned.status, reason in planned.err) == (0, True)
    done = call("run", *arguments, "--limit", "20", "--executor", "inline", "--out", tmp_path / "out")
    assert (done.status, done.err.count(reason)) == (1, 1)
    assert "failed" not in done.out


def test_partial_imagenet_names_its_target(call: Call, photos: DatasetSpec, tmp_path: Path) -> None:
    reason = "no evaluation set for 'imagenet'; a part of it is here: --on imagenet-subset-3"
    refused(call(*CONTROL, "--on", "imagenet", "--data", tmp_path / "data"), reason)
    (tmp_path / "other" / "n01440764").mkdir(parents=True)
    missing = Catalogue.discover([tmp_path / "data", tmp_path / "other"]).target("imagenet").missing
    assert missing == f"{reason},imagenet-subset-1"


def test_network_that_its_library_does_not_have(call: Call) -> None:
    name = "torchvision:nosuch"
    line = refused(call(*CONTROL, "--on", "digits", "--models", name), "unknown torchvision model 'nosuch'")
    assert "valid: densenet121, " in line, "the nearest names are listed where none is near"
    for reference in (f"{name}?weights=random", "timm:resnte18"):
        with pytest.raises(InputError, match="unknown .* model"):
            Catalogue.discover([]).models("digits", [reference])


def test_library_that_is_not_installed_is_a_reason(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytorchcv.model_provider", None)
    name = "pytorchcv:resnet18?weights=random"
    (cell,) = call("plan", *CONTROL[1:], "--on", "digits", "--models", name, "--json").json["cells"]
    assert cell["problem"]["status"] == "unavailable"
    assert "pytorchcv is not installed" in cell["problem"]["reason"]


def test_network_of_torchvision_needs_three_channels() -> None:
    (model,) = Catalogue.discover([]).models("digits", ["torchvision:resnet50?weights=random"])
    assert isinstance(model, ModelSpec)
    with pytest.raises(Unavailable, match="torchvision:resnet50 takes images of 3 channels, not 1"):
        build_teacher(model)


def test_diagnose_shows_what_it_cannot_write(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_record(tmp_path, "one", "aaa", label="zeroq", source_images=64)
    model = Catalogue.discover([]).models("digits")[0]
    assert isinstance(model, ModelSpec)
    (folder / "student.json").write_text(json.dumps({"model": model.as_dict()}))
    save_file({"images": torch.randn(64, 1, 8, 8), "labels": torch.arange(64) % 10}, folder / "images.safetensors")

    def read_only(*_: object) -> None:
        raise PermissionError(30, "Read-only file system")

    monkeypatch.setattr(RunFolder, "write_record", read_only)
    output = call("diagnose", "one", "--out", tmp_path)
    assert output.status == 1
    assert "not diagnosed: zeroq aaa: its record cannot be written: Read-only file system" in output.err
    assert "0 cells diagnosed, 0 before" in output.err
    assert "homogeneity" in output.out


@pytest.mark.slow
def test_methods_check_has_the_import_path_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fractions.py").write_text("raise RuntimeError('a file of the current folder was imported')")
    monkeypatch.chdir(tmp_path)
    method = MethodUnderTest(load_plugins(), "noise")
    light(method)
    ends(method)
