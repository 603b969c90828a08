from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dfqbench.api import InputError, InputStats, ModelCard
from dfqbench.models.spec import ModelSpec
from dfqbench.targets.manifest import add_fetched_model, fetched_models, read_manifest
from dfqbench.targets.spec import DatasetSpec

DATASET = """
[datasets.cifar10]
kind = "npz"
evaluate = "cifar10/test.npz"
classes = 10
"""
STATS = "stats = { mean = [0.5, 0.4, 0], std = [0.25, 0.5, 0.125] }\n"
MODEL = """
[[models]]
target = "cifar10"
name = "cifar:resnet20"
weights = "weights/w.safetensors"
kwargs = { shortcut = "A" }
mean = [0.485, 0.456, 0.406]
std = [0.229, 0.224, 0.225]
top1 = 91.73
"""
CARD = ModelCard((3, 32, 32), (0.5, 0.25, 1e-3), (0.5, 0.5, 0.5), 10)
NAMES = [
    "plain",
    "\U0001f680 beyond the basic plane",
    "quotes \" and '",
    "new\nline\r\n\ttab\x00\x7f",
    "back\\slash \\u0041",
]
Write = Callable[[str], Path]


def test_data_sets_and_models(manifest: Write, tmp_path: Path) -> None:
    read = read_manifest(manifest(DATASET + STATS + MODEL))
    stats = InputStats((0.5, 0.4, 0.0), (0.25, 0.5, 0.125))
    dataset = DatasetSpec("cifar10", "npz", tmp_path / "cifar10/test.npz", None, 10, stats=stats)
    card = ModelCard((3, 32, 32), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 10)
    weights = tmp_path / "weights/w.safetensors"
    model = ModelSpec(
        "cifar10", "cifar:resnet20", "cifar:resnet20", card, weights=weights, top1=91.73, kwargs={"shortcut": "A"}
    )
    assert (read.datasets["cifar10"], read.models) == (dataset, (model,))
    assert not model.trusted
    assert ModelSpec.from_dict(json.loads(json.dumps(model.as_dict()))) == model
    assert DatasetSpec.from_dict(json.loads(json.dumps(dataset.as_dict()))) == dataset


def test_normalisation_defaults_to_that_of_the_target(manifest: Write) -> None:
    text = DATASET + '[[models]]\ntarget = "cifar10"\nname = "cifar:resnet20"\nrandom_seed = 3\n'
    (model,) = read_manifest(manifest(text)).models
    assert model.card.mean == (0.4914, 0.4822, 0.4465)
    assert (model.random_seed, model.weights) == (3, None)


def test_absolute_paths_are_for_data_only(manifest: Write, tmp_path: Path) -> None:
    there = tmp_path / "cifar10" / "test.npz"
    text = DATASET.replace('"cifar10/test.npz"', f'"{there}"')
    assert read_manifest(manifest(text)).datasets["cifar10"].evaluate == there
    with pytest.raises(InputError, match="is absolute"):
        read_manifest(manifest(DATASET + MODEL.replace('"weights/', f'"{tmp_path}/weights/')))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("[datasets.cifar10]", "[datasets.cifar10"), "is not valid TOML"),
        (("classes =", "clases ="), r"datasets.cifar10: unknown key 'clases'; did you mean classes"),
        (("top1 =", "top_1 ="), r"models\[0\]: unknown key 'top_1'; did you mean top1"),
        (("[[models]]", "[[model]]"), "unknown key 'model'; did you mean models"),
        (("classes = 10", 'classes = "ten"'), "datasets.cifar10: classes: input should be a valid integer"),
        (("classes = 10", ""), "'classes' is missing"),
        (('kind = "npz"', 'kind = "zip"'), "kind: input should be 'npz'"),
        (("cifar10/test.npz", "cifar10/tset.npz"), "there is no file .*tset.npz"),
        (("cifar10/test.npz", "../cifar10/test.npz"), "leaves the manifest's folder"),
        (("weights/w", "../weights/w"), "leaves the manifest's folder"),
        (("top1 = 91.73", "top1 = 917.3"), "top1: input should be less than or equal to 100"),
        (("std = [0.229, 0.224, 0.225]", "std = [0.229]"), "std has 1 values for 3 channels"),
        (("std = [0.229,", "std = [0.0,"), "std must be positive"),
        (("0.5, 0.4, 0]", "0.5]"), "stats has 1 values of mean and 3 of std"),
        (
            ("stats = { mean = [0.5, 0.4, 0], std = [0.25, 0.5, 0.125] }", "stats = { mean = [], std = [] }"),
            "stats has",
        ),
        (("0.4, 0]", "0.4]"), "stats has 2 values of mean and 3 of std"),
        (("[0.5, 0.4, 0], std = [0.25, 0.5, 0.125]", "[0.5], std = [0.25]"), "'cifar10' has 1 values for 3 channels"),
        (("[0.5, 0.4, 0]", "[123, 116, 103]"), "stats.mean must be from 0 to 1; measure it on pixels"),
        (("[0.5, 0.4, 0]", "[-0.5, 0, 0]"), "stats.mean must be from 0 to 1"),
        (("[0.5, 0.4, 0]", "[nan, 0, 0]"), "stats.mean must be from 0 to 1"),
        (("[0.25, 0.5, 0.125]", "[0.25, 0.0, 0.125]"), "stats.std must be above 0"),
        (("[0.25, 0.5, 0.125]", "[58.0, 57.0, 57.0]"), "stats.std must be above 0, and at most 0.5"),
        (("[0.25, 0.5, 0.125]", "[nan, 0.5, 0.5]"), "stats.std must be above 0"),
        (("[0.25, 0.5, 0.125]", "0.25"), "datasets.cifar10.stats: std: input should be a valid list"),
        (("{ mean = [0.5, 0.4, 0], std", "{ means = [0.5], std"), "unknown key 'means'; did you mean mean"),
        (("top1 = 91.73", "stats = { mean = [0], std = [1] }"), "unknown key 'stats'"),
        (("top1 = 91.73", "input_size = [3, 32]"), "input_size .* is wrong"),
        (("resnet20", "resnet20?width=2"), "write arguments as kwargs"),
        (("top1 = 91.73", "args = [2020-01-01]"), "date is no argument"),
        ((MODEL, MODEL + MODEL), "declared twice"),
    ],
)
def test_faults_name_the_place_in_one_line(manifest: Write, change: tuple[str, str], message: str) -> None:
    path = manifest((DATASET + STATS + MODEL).replace(*change))
    with pytest.raises(InputError, match=message) as caught:
        read_manifest(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("weights/w", "weights/gone"), "gone.safetensors is missing"),
        (('weights = "weights/w.safetensors"', ""), "no weights"),
        (("top1 = 91.73", 'ref = "py:os:system"'), "name it on the command line"),
        (("top1 = 91.73", 'ref = "py:evil.py:build"'), "name it on the command line"),
        (("top1 = 91.73", 'ref = "py:timm.modelsevil:x"'), "name it on the command line"),
        (("top1 = 91.73", 'ref = "py:dfqbench.models.cifar:CifarResNet"'), "name it on the command line"),
    ],
)
def test_model_of_foreign_code_or_without_weights_is_unavailable(manifest: Write, change: Any, reason: str) -> None:
    bad = MODEL.replace("cifar:resnet20", "cifar:resnet56").replace(*change)
    read = read_manifest(manifest(DATASET + MODEL + bad))
    assert [model.name for model in read.models] == ["cifar:resnet20"]
    ((target, missing),) = read.unavailable
    assert (target, missing.name) == ("cifar10", "cifar:resnet56")
    assert reason in missing.reason


def test_family_of_a_plugin_needs_the_plugin(manifest: Write) -> None:
    path = manifest(DATASET + MODEL + 'ref = "toys:tiny"\n')
    assert "unknown model family 'toys'" in read_manifest(path).unavailable[0][1].reason
    assert read_manifest(path, families=["toys"]).models[0].ref == "toys:tiny"


def test_unknown_target_needs_a_full_card(manifest: Write) -> None:
    other = MODEL.replace('target = "cifar10"', 'target = "other"')
    with pytest.raises(InputError, match="input_size, mean and std are unknown for target 'other'"):
        read_manifest(manifest(DATASET + other))
    with pytest.raises(InputError, match="number of classes is unknown"):
        read_manifest(manifest(DATASET + other + "input_size = 32\n"))
    assert read_manifest(manifest(DATASET + other + "input_size = 32\nclasses = 7\n")).models[0].card.classes == 7


def weighted_model(folder: Path, name: str, **changes: object) -> ModelSpec:
    weights = folder / "w.safetensors"
    weights.write_bytes(b"x")
    return ModelSpec("cifar10", name, "cifar:resnet20", CARD, weights=weights, top1=91.5, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", NAMES)
def test_fetched_model_is_written_and_read_back(tmp_path: Path, name: str) -> None:
    written = weighted_model(tmp_path, name, kwargs={name: [1, 2.5, {name: True}]}, sha256="ab" * 32)
    add_fetched_model(tmp_path, written)
    assert read_manifest(tmp_path / "fetched.toml").models == (written,)


def test_fetched_models_replace_their_older_entries(tmp_path: Path) -> None:
    for name in (*NAMES, NAMES[0]):
        add_fetched_model(tmp_path, weighted_model(tmp_path, name))
    assert [table["name"] for table in fetched_models(tmp_path)] == [*NAMES[1:], NAMES[0]]


def test_lone_surrogate_is_an_error_that_keeps_the_file(tmp_path: Path) -> None:
    add_fetched_model(tmp_path, weighted_model(tmp_path, "plain"))
    before = (tmp_path / "fetched.toml").read_bytes()
    with pytest.raises(InputError, match=r"cannot hold 'half \\ud83d': it is not Unicode text; correct the name"):
        add_fetched_model(tmp_path, weighted_model(tmp_path, "half \ud83d"))
    assert (tmp_path / "fetched.toml").read_bytes() == before
