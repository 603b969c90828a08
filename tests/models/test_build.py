from __future__ import annotations

import dataclasses
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from dfqbench.api import DfqError, InputError, ModelCard, PluginError, Unavailable
from dfqbench.isolation import local_module_name
from dfqbench.models.build import build_teacher
from dfqbench.models.spec import ModelSpec
from dfqbench.models.summary import summarise

CARD = ModelCard((3, 32, 32), (0.5,) * 3, (0.5,) * 3, 10)
USERS_FILE = """
from __future__ import annotations
from dataclasses import dataclass
from torch import nn
@dataclass
class Sizes:
    width: int
def build(width):
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))
def broken():
    raise RuntimeError('first line\\nsecond line')
"""
BARRED: dict[str, Any] = {"trusted": False}
PHOTO = ModelCard((3, 64, 64), (0.5,) * 3, (0.5,) * 3, 7)


def spec(ref: str, card: ModelCard = CARD, **more: Any) -> ModelSpec:
    return ModelSpec("t", ref, ref, card, **{"random_seed": 0, "trusted": True, **more})


@pytest.mark.parametrize(
    ("ref", "card"),
    [
        ("cifar:resnet20", CARD),
        ("torchvision:resnet18", CARD),
        ("torchvision:mobilenet_v2", PHOTO),
        ("timm:test_resnet.r160_in1k", PHOTO),
        ("pytorchcv:resnet20_cifar10", CARD),
        ("digits:mobilenet9", ModelCard((1, 8, 8), (0.3,), (0.4,), 10)),
        ("digits:resnet8", ModelCard((1, 8, 8), (0.3,), (0.4,), 10)),
        ("timm:test_resnet", ModelCard((1, 64, 64), (0.5,), (0.5,), 7)),
        ("py:dfqbench.models.cifar:CifarResNet", CARD),
    ],
)
def test_random_weights_are_seeded(ref: str, card: ModelCard) -> None:
    if ref.startswith("pytorchcv:"):
        pytest.importorskip("pytorchcv")
    more: dict[str, Any] = {"args": (20,)} if ref.startswith("py:") else {}
    state = torch.get_rng_state()
    first = build_teacher(spec(ref, card, **more))
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(1)
    again = build_teacher(spec(ref, card, **more))
    other = build_teacher(spec(ref, card, random_seed=1, **more))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))
    assert not first.training
    assert not any(value.requires_grad for value in first.parameters())
    assert all(value.dtype == torch.float32 for value in first.parameters())
    weights = [value for value in first.parameters() if value.dim() == 4]
    assert all(value.is_contiguous(memory_format=torch.channels_last) for value in weights)


def test_missing_library_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytorchcv", None)
    monkeypatch.setitem(sys.modules, "pytorchcv.model_provider", None)
    with pytest.raises(Unavailable, match=r"pip install 'dfqbench\[pytorchcv\]'"):
        build_teacher(spec("pytorchcv:resnet20_cifar10"))


def test_weights_are_loaded(tmp_path: Path) -> None:
    source = build_teacher(spec("cifar:resnet20", random_seed=5))
    save_file({name: value.contiguous() for name, value in source.state_dict().items()}, tmp_path / "w.safetensors")
    loaded = build_teacher(spec("cifar:resnet20", random_seed=None, weights=tmp_path / "w.safetensors"))
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(source(x), loaded(x))
    with pytest.raises(InputError, match="does not fit CifarResNet"):
        build_teacher(spec("cifar:resnet56", weights=tmp_path / "w.safetensors"))
    with pytest.raises(InputError, match="is not the file that was fetched"):
        build_teacher(spec("cifar:resnet20", weights=tmp_path / "w.safetensors", sha256="0" * 64))


@pytest.mark.parametrize(
    ("ref", "more", "error", "message"),
    [
        ("cifar:resnet21", {}, InputError, r"unknown cifar model 'resnet21'; did you mean .*resnet20"),
        ("torchvision:resnet19", {}, InputError, "unknown torchvision model 'resnet19'"),
        ("torchvision:fcn_resnet50", {}, InputError, "unknown torchvision model"),
        ("timm:resnet10x", {}, InputError, "unknown timm model 'resnet10x'; did you mean"),
        ("cifar:resnet20", {"kwargs": {"colour": 1}}, InputError, "cannot be built: TypeError: .*colour"),
        ("cifar:resnet20", {"kwargs": {"shortcut": "C"}}, InputError, "unknown shortcut 'C'"),
        ("cifar:resnet20", {"kwargs": {"classes": 100}}, InputError, r"gives \(1, 100\) for .* image, not \(1, 10\)"),
        ("timm:test_resnet", {"kwargs": {"in_chans": 1}}, InputError, "does not take 3x32x32 images"),
        ("py:pathlib:Path", {}, InputError, "returned PosixPath, not a torch.nn.Module"),
        ("py:no_such_module:f", {}, InputError, "there is no module no_such_module"),
        ("py:gone.py:build", {}, InputError, "there is no Python file"),
        ("py:dfqbench.models.cifar:CifarRsNet", {}, InputError, "unknown callable .*did you mean CifarResNet"),
        # A manifest can neither run code nor download.
        ("py:os:getcwd", BARRED, Unavailable, "may not name code"),
        ("py:timm.models._hub:load_state_dict_from_hf", BARRED, Unavailable, "may not name code"),
        ("py:timm.models:create_model", BARRED | {"args": ("resnet18",)}, Unavailable, "code of another package"),
        ("py:timm.models.resnet:partial", BARRED, Unavailable, "code of another package"),
        (
            "py:timm.models.resnet:resnet18",
            BARRED | {"kwargs": {"pretrained": True}},
            InputError,
            "not pass pretrained",
        ),
        ("py:timm.models.resnet:resnet18", BARRED | {"args": (True,)}, InputError, "may not pass pretrained"),
        ("timm:resnet18", BARRED | {"kwargs": {"checkpoint_path": "/x"}}, InputError, "not pass checkpoint_path"),
        ("torchvision:resnet18", BARRED | {"kwargs": {"weights": "DEFAULT"}}, InputError, "may not pass weights"),
    ],
)
def test_faults_are_one_line(ref: str, more: dict[str, Any], error: type[DfqError], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        build_teacher(spec(ref, **more))
    assert "\n" not in str(caught.value)


def test_python_file_of_the_user(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(USERS_FILE)
    model = build_teacher(spec(f"py:{path}:build", kwargs={"width": 6}))
    assert summarise(model, CARD).params == 3 * 6 * 9 + 6 + 60 + 10
    with pytest.raises(InputError, match="cannot be built: RuntimeError: first line; check its arguments"):
        build_teacher(spec(f"py:{path}:broken"))
    names = set(sys.modules)
    path.write_text("import no_such_thing")
    with pytest.raises(InputError, match="does not import: ModuleNotFoundError"):
        build_teacher(spec(f"py:{path}:build"))
    assert local_module_name(path) not in sys.modules
    assert set(sys.modules) <= names


def test_family_of_a_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    toys = types.ModuleType("toys_for_test")
    monkeypatch.setitem(sys.modules, "toys_for_test", toys)

    def make(name: str, width: int = 4) -> nn.Module:
        assert name == "tiny"
        return nn.Sequential(nn.Conv2d(3, width, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))

    toys.make = make  # type: ignore[attr-defined]
    families = {"toys": "toys_for_test:make"}
    assert build_teacher(spec("toys:tiny", kwargs={"width": 5}), families=families)[0].out_channels == 5  # type: ignore[index]
    with pytest.raises(DfqError, match="unknown model family 'toys'"):
        build_teacher(spec("toys:tiny"))
    with pytest.raises(PluginError, match="does not load"):
        build_teacher(spec("toys:tiny"), families={"toys": "toys_for_test:gone"})

    def make_for(name: str, width: int, *, classes: int, in_channels: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(in_channels, width, 8), nn.Flatten(), nn.Linear(width, classes))

    toys.make = make_for  # type: ignore[attr-defined]
    card = ModelCard((1, 8, 8), (0.5,), (0.5,), 7)
    model = ModelSpec("toy", "toys:tiny", "toys:tiny", card, args=(5,), random_seed=0)
    assert build_teacher(model, families=families)(torch.zeros(2, 1, 8, 8)).shape == (2, 7)
    with pytest.raises(InputError, match=r"gives \(1, 3\) for one 1x8x8 image, not \(1, 7\)"):
        build_teacher(dataclasses.replace(model, kwargs={"classes": 3}), families=families)


def test_manifest_may_name_a_builder_of_a_library() -> None:
    card = ModelCard((3, 64, 64), (0.5,) * 3, (0.5,) * 3, 1000)
    arguments = {"args": ("mobilenetv1_100", 0.25), "kwargs": {"pad_type": "same", "bn_eps": 1e-3}}
    model = spec("py:timm.models.efficientnet:_gen_mobilenet_v1", card, trusted=False, **arguments)
    summary = summarise(build_teacher(model), model.card)
    assert (summary.convolutions, summary.linears, summary.batchnorms) == (27, 1, 27)


def test_summary_counts_multiply_accumulates() -> None:
    summary = summarise(build_teacher(spec("cifar:resnet20")), CARD)
    # 3x3x3x16 at 32x32, and so on: 41 million, as in the literature.
    first, others = 3 * 9 * 16 * 1024 + 6 * 9 * 16 * 16 * 1024, 9 * 16 * 32 * 256 + 5 * 9 * 32 * 32 * 256
    assert summary.macs == first + others + 9 * 32 * 64 * 64 + 5 * 9 * 64 * 64 * 64 + 640
    assert (summary.batchnorms, summary.activations) == (19, 19)
