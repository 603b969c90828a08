from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from dfqbench.api import FileOffer, InputError, InputStats, UsageError
from dfqbench.models.spec import ModelSpec
from dfqbench.targets.catalogue import Catalogue
from dfqbench.targets.layouts import wnids
from dfqbench.targets.spec import DatasetSpec, MissingModel

MANIFEST = """
[datasets.cifar10]
kind = "npz"
evaluate = "cifar10/test.npz"
classes = 10
[[models]]
target = "cifar10"
name = "cifar:resnet20"
weights = "weights/w.safetensors"
[[models]]
target = "cifar10"
name = "cifar:resnet56"
weights = "weights/gone.safetensors"
"""
Write = Callable[[str], Path]


def imagenet_folder(root: Path, classes: tuple[str, ...]) -> Path:
    for wnid in classes:
        (root / wnid).mkdir(parents=True)
        (root / wnid / "a.JPEG").write_bytes(b"")
    return root


def add_fetched_weights(folder: Path, target: str, name: str) -> None:
    (folder / "weights").mkdir(parents=True, exist_ok=True)
    (folder / "weights" / "f.safetensors").write_bytes(b"x")
    table = f'[[models]]\ntarget = "{target}"\nname = "{name}"\nweights = "weights/f.safetensors"\n'
    (folder / "fetched.toml").write_text(table)


def available(models: list[ModelSpec | MissingModel]) -> list[ModelSpec]:
    return [model for model in models if isinstance(model, ModelSpec)]


@pytest.fixture
def catalogue(manifest: Write, tmp_path: Path) -> Catalogue:
    manifest(MANIFEST)
    return Catalogue.discover([tmp_path])


def test_digits_are_complete_without_data_folders() -> None:
    catalogue = Catalogue.discover([])
    assert catalogue.names() == ["imagenet", "cifar10", "cifar100", "digits"]
    assert catalogue.why_incomplete("digits") == ""
    models = available(catalogue.models("digits"))
    assert [model.name for model in models] == ["digits:resnet8", "digits:mobilenet9"]
    assert all(model.weights is not None and model.weights.is_file() for model in models)
    assert "DIR/val/<wnid>" in catalogue.why_incomplete("imagenet")
    assert "dfqbench fetch cifar10" in catalogue.why_incomplete("cifar10")


def test_models_of_a_manifest(catalogue: Catalogue) -> None:
    assert catalogue.why_incomplete("cifar10") == catalogue.why_incomplete("cifar10", ["resnet20"]) == ""
    assert "gone.safetensors is missing" in catalogue.why_incomplete("cifar10", ["resnet56"])
    models = catalogue.models("cifar10")
    assert [model.name for model in models] == ["cifar:resnet20", "cifar:resnet56"]
    assert catalogue.models("cifar10", ["cifar:resnet20", "resnet20"]) == models[:1]


@pytest.mark.usefixtures("catalogue")
def test_fetched_weights_belong_to_a_data_set_of_another_folder(tmp_path: Path) -> None:
    add_fetched_weights(tmp_path / "other", "cifar10", "pytorchcv:resnet20_cifar10")
    models = Catalogue.discover([tmp_path, tmp_path / "other"]).models("cifar10")
    assert [model.name for model in available(models)] == ["cifar:resnet20", "pytorchcv:resnet20_cifar10"]


@pytest.mark.parametrize(
    ("target", "model", "message"),
    [
        ("cifar11", "resnet20", "unknown target 'cifar11'; did you mean cifar10"),
        ("cifar10", "resnet21", "unknown model 'resnet21'; did you mean .*resnet20"),
        ("cifar10", "torchvison:resnet18", "unknown model family 'torchvison'; did you mean torchvision"),
        ("cifar10", "cifar:resnet20?weights=gone.pt", "there is no weights file"),
        ("cifar10", "py:gone.py:build", "there is no file"),
        ("cifar10", "py:gone", "does not name a callable"),
        ("cifar10", "timm:resnet10t?weights", "not a list of arguments"),
        ("cifar10", "timm:x?classes=1&classes=2", "given twice"),
        ("cifar10", "timm:x?classes=ten", "not a whole number"),
        ("cifar10", "timm:x?classes=true", "not a whole number"),
        ("cifar10", "timm:x?mean=half", "not a list of numbers"),
        ("cifar10", "timm:hf-hub:a/b?weights=random", "not the name of a model"),
        ("cifar10", "cifar:resnet20?weights=random&input_size=big", "input_size big is wrong"),
    ],
)
def test_faulty_names_are_errors(catalogue: Catalogue, target: str, model: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        catalogue.models(target, [model])


def test_model_of_another_target_is_missing(catalogue: Catalogue) -> None:
    (model,) = catalogue.models("digits", ["resnet20"])
    assert isinstance(model, MissingModel)
    assert "cifar10 has it" in model.reason


@pytest.mark.parametrize("inner", ["imagenet/val", "val", "."])
def test_part_of_imagenet_is_a_subset(tmp_path: Path, inner: str) -> None:
    imagenet_folder(tmp_path / inner, wnids()[5:8])
    catalogue = Catalogue.discover([tmp_path])
    part = DatasetSpec("imagenet-subset-3", "imagenet-folder", tmp_path / inner, None, 1000, "imagenet")
    assert catalogue.target("imagenet-subset-3").dataset == part
    assert catalogue.target("imagenet").dataset is None


def test_folder_of_all_classes_is_imagenet(tmp_path: Path) -> None:
    imagenet_folder(tmp_path / "val", wnids())
    imagenet_folder(tmp_path / "train", wnids()[:2])
    dataset = Catalogue.discover([tmp_path]).target("imagenet").dataset
    assert dataset == DatasetSpec("imagenet", "imagenet-folder", tmp_path / "val", tmp_path / "train", 1000)


def test_layouts_of_cifar(tmp_path: Path, write_npz: Callable[..., Path]) -> None:
    test = write_npz("cifar10/test.npz")
    pickles = tmp_path / "cifar-100-python"
    pickles.mkdir()
    (pickles / "test").write_bytes(b"")
    catalogue = Catalogue.discover([tmp_path])
    assert catalogue.target("cifar10").dataset == DatasetSpec("cifar10", "npz", test, None, 10)
    assert catalogue.target("cifar100").dataset == DatasetSpec("cifar100", "torchvision", pickles, pickles, 100)
    assert "has no models" in catalogue.why_incomplete("cifar10")


def test_faults_of_data_folders(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no data that dfqbench knows; it should have"):
        Catalogue.discover([tmp_path])
    with pytest.raises(InputError, match="there is no data folder"):
        Catalogue.discover([tmp_path / "gone"])
    imagenet_folder(tmp_path / "val", (wnids()[0], "n00000001"))
    with pytest.raises(InputError, match="n00000001 is none of the 1,000 classes"):
        Catalogue.discover([tmp_path])


@pytest.mark.usefixtures("catalogue")
def test_broken_folder_of_a_plugin_is_a_problem(tmp_path: Path) -> None:
    offers = [FileOffer("bad", str(tmp_path / "gone")), FileOffer("good", str(tmp_path))]
    catalogue = Catalogue.discover([], offers)
    assert catalogue.why_incomplete("cifar10") == ""
    (problem,) = catalogue.problems
    assert "'bad'" in problem


def test_subset_uses_the_networks_of_the_whole(tmp_path: Path) -> None:
    imagenet_folder(tmp_path / "val", wnids()[:2])
    catalogue = Catalogue.discover([tmp_path])
    for name in ("torchvision:resnet18", "torchvision:mobilenet_v2", "timm:resnet10t"):
        assert f"dfqbench fetch {name}" in catalogue.why_incomplete("imagenet-subset-2", [name])
    assert "dfqbench fetch torchvision:resnet18" in catalogue.why_incomplete("imagenet-subset-2")
    add_fetched_weights(tmp_path, "imagenet", "torchvision:resnet18")
    for complete, kind in ((catalogue, MissingModel), (Catalogue.discover([tmp_path]), ModelSpec)):
        (model,) = complete.models("imagenet-subset-2", ["resnet18"])
        assert isinstance(model, kind)
        assert model.name == "torchvision:resnet18"


def test_typed_references(tmp_path: Path) -> None:
    catalogue = Catalogue.discover([])
    text = "torchvision:resnet18?weights=random&width_per_group=32"
    (random,) = available(catalogue.models("imagenet", [text]))
    assert (random.ref, random.random_seed, random.trusted) == ("torchvision:resnet18", 0, True)
    assert (random.name, random.kwargs) == (text, {"width_per_group": 32})
    assert random.card.input_size == (3, 224, 224)

    weights = tmp_path / "w+1.pt"
    weights.write_bytes(b"x")
    text = f"cifar:resnet20?weights={weights}&mean=[0.5,0.5,0.5]&std=[0.25,0.25,0.25]&shortcut=B&input_size=16"
    (given,) = available(catalogue.models("cifar10", [text]))
    assert (given.weights, given.random_seed, given.kwargs) == (weights, None, {"shortcut": "B"})
    assert (given.card.mean, given.card.input_size) == ((0.5, 0.5, 0.5), (3, 16, 16))

    (tmp_path / "mine.py").write_text("")
    (code,) = available(catalogue.models("cifar10", [f"py:{tmp_path}/mine.py:build?width=0.5"]))
    assert (code.ref, code.kwargs, code.weights) == (f"py:{tmp_path}/mine.py:build", {"width": 0.5}, None)


def domain_stats(catalogue: Catalogue, target: str, options: str = "", name: str = "cifar:resnet20") -> list[float]:
    (model,) = available(catalogue.models(target, [f"{name}?weights=random{options}"]))
    return [*model.card.input_stats.mean, *model.card.input_stats.std]


HALF = "&mean=[0.5,0.5,0.5]&std=[0.5,0.5,0.5]"
IMAGENET = "&mean=[0.485,0.456,0.406]&std=[0.229,0.224,0.225]"


@pytest.mark.parametrize(
    ("target", "options", "expected"),
    [
        ("cifar10", "", [0, 0, 0, 1, 1, 1]),
        ("cifar10", IMAGENET, [0.0279, 0.1170, 0.1800, 1.0786, 1.0871, 1.1627]),
        ("cifar100", "&mean=[0.5071,0.4867,0.4408]&std=[0.2675,0.2565,0.2761]", [0, 0, 0, 1, 1, 1]),
        ("cifar100", IMAGENET, [0.0965, 0.1371, 0.1547, 1.1681, 1.1451, 1.2271]),
        ("imagenet", "", [0, 0, 0, 1, 1, 1]),
        ("imagenet", HALF, [-0.03, -0.088, -0.188, 0.458, 0.448, 0.45]),
        ("digits", "&mean=0&std=1", [0.3054, 0.3762]),
    ],
)
def test_cards_have_the_statistics_of_their_targets_domain(target: str, options: str, expected: list[float]) -> None:
    name = "digits:resnet8" if target == "digits" else "cifar:resnet20"
    assert domain_stats(Catalogue.discover([]), target, options, name) == pytest.approx(expected, abs=1e-4)


def test_embedded_networks_normalise_with_their_domain() -> None:
    for model in available(Catalogue.discover([]).models("digits")):
        assert model.card.stats == InputStats((0.0,), (1.0,))


def test_subset_has_the_domain_of_the_whole(tmp_path: Path) -> None:
    imagenet_folder(tmp_path / "val", wnids()[:2])
    assert domain_stats(Catalogue.discover([tmp_path]), "imagenet-subset-2", HALF)[0] == pytest.approx(-0.03)


def test_statistics_of_a_manifest_override_and_unknown_ones_are_0_and_1(manifest: Write, tmp_path: Path) -> None:
    domain = "stats = { mean = [0.75, 0.5, 0.25], std = [0.25, 0.5, 0.125] }"
    other = MANIFEST.partition("[[models]]")[0].replace("[datasets.cifar10]", "[datasets.part]")
    manifest(MANIFEST.replace("classes = 10", f"classes = 10\n{domain}") + other + 'subset_of = "cifar10"\n')
    expected = [0.5, 0, -0.5, 0.5, 1, 0.25]
    for target in ("cifar10", "part"):  # a network of the manifest, and a typed one
        catalogue = Catalogue.discover([tmp_path])
        assert domain_stats(catalogue, target, HALF) == expected
        (model, *_) = available(catalogue.models(target))
        assert model.card.input_stats.std[0] == pytest.approx(0.25 / 0.2470)
    manifest(other + 'subset_of = "elsewhere"\n')
    unknown_domain = f"cifar:resnet20?weights=random&input_size=[3,32,32]{HALF}"
    (unknown,) = available(Catalogue.discover([tmp_path]).models("part", [unknown_domain]))
    assert unknown.card.stats is None
    assert unknown.card.input_stats == InputStats((0.0,) * 3, (1.0,) * 3)


def test_network_with_another_number_of_channels_is_unavailable() -> None:
    reference = "cifar:resnet20?weights=random&input_size=[1,32,32]&mean=0.5&std=0.5"
    (model,) = Catalogue.discover([]).models("cifar10", [reference])
    assert isinstance(model, MissingModel)
    assert model.reason == "images of 'cifar10' have 3 channels, its input has 1"
