"""Grid files and manifests: read as they were written, and refused by a message that names the file."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st
from tests.properties.examples import DEEP, JUNK, NOT_FINITE, damaged, near

from dfqbench.api import InputError, ModelCard
from dfqbench.api.errors import DfqError
from dfqbench.grid.load import read_grid
from dfqbench.grid.schema import Grid
from dfqbench.grid.selectors import apply, parse_selection
from dfqbench.models.spec import ModelSpec
from dfqbench.quant.scheme import VALID_BITS, Scheme
from dfqbench.targets.catalogue import Catalogue
from dfqbench.targets.folders import data_folders
from dfqbench.targets.manifest import FETCHED, MANIFEST, add_fetched_model, read_manifest
from dfqbench.targets.spec import DatasetSpec

GRID: dict[str, Any] = {
    "name": "mine",
    "title": "Mine",
    "on": ["digits"],
    "methods": ["zeroq", "noise+distill:gdfq", "*"],
    "models": {"digits": ["resnet8"], "*": ["digits:resnet8"]},
    "schemes": ["w4a4@mine", "w3a3"],
    "seeds": [0, 1],
    "budget": "smoke",
    "threads": 2,
    "precision": "float32",
    "limit": 100,
    "absent": {"qimera": "no plugin offers it"},
    "set": {"zeroq": {"lr": 0.1, "iterations": 3}, "distill.range": "ema"},
    "protocols": {
        "mine": {
            "base": "deploy",
            "first_bits": "none",
            "last_bits": 4,
            "fold_batchnorm": False,
            "placement": "layer_input",
            "weights": {"granularity": "tensor", "symmetric": True, "rounding": "scale_zero_point"},
            "overrides": [{"pattern": "layer4.*", "w_bits": 8, "a_bits": 4}],
        }
    },
}
DATA: dict[str, Any] = {
    "datasets": {
        "toy": {
            "kind": "npz",
            "evaluate": "toy.npz",
            "classes": 10,
            "resize": 8,
            "default_budget": "smoke",
            "stats": {"mean": [0.3], "std": [0.4]},
        }
    },
    "models": [
        {
            "target": "toy",
            "name": "digits:resnet8",
            "weights": "toy.safetensors",
            "input_size": [1, 8, 8],
            "mean": [0.3],
            "std": [0.4],
            "top1": 99.0,
            "sha256": "00",
        },
        {"target": "cifar10", "name": "a", "ref": "cifar:resnet20", "random_seed": 3, "kwargs": {"shortcut": "A"}},
        {"target": "cifar10", "name": "b", "ref": "py:timm.models:resnet18", "args": [1, [2]], "classes": 10},
    ],
}
ODD = st.one_of(JUNK, NOT_FINITE, DEEP).filter(lambda value: value is not None)
TOML_KEY = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
any_toml = st.dictionaries(
    TOML_KEY | st.sampled_from([*GRID, *DATA]),
    st.recursive(ODD, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TOML_KEY, inner, max_size=3)),
    max_size=4,
)


def toml(data: dict[str, Any]) -> bytes:
    """Return data as TOML; what it cannot hold stays out."""
    try:
        return tomli_w.dumps(data).encode()
    except (TypeError, ValueError, RecursionError):
        return b"seeds = [" + str(data)[:40].encode("utf-8", "replace")


any_file = st.one_of(
    st.binary(max_size=60),
    st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass")),
    near(st.sampled_from([toml(GRID).decode(), toml(DATA).decode()])).map(lambda t: t.encode("utf-8", "surrogatepass")),
    any_toml.map(toml),
)


def check_message(error: DfqError, path: Path) -> None:
    assert isinstance(error, InputError)
    assert str(path) in error.message
    assert "\n" not in str(error).replace(str(path), "") or "\\n" in repr(str(error))


def read_as_grid(folder: Path, content: bytes) -> Grid | None:
    path = folder / "mine.toml"
    path.write_bytes(content)
    try:
        grid = read_grid(path)
    except DfqError as error:
        check_message(error, path)
        return None
    for scheme in grid.parsed_schemes:
        bits = (scheme.w_bits, scheme.a_bits, scheme.protocol.input_bits)
        assert set(bits) <= set(VALID_BITS)
        assert Scheme.from_dict(json.loads(json.dumps(scheme.as_dict()))) == scheme
    assert grid.parsed_schemes
    assert grid.methods
    assert grid.seeds
    assert all(0 <= seed < 2**63 for seed in grid.seeds)
    assert grid.limit is None or grid.limit >= 1
    assert all(key.count(".") == 1 for key in grid.settings)
    assert apply(grid, parse_selection()) == grid
    return grid


@given(any_file)
def test_any_file_is_a_grid_or_a_message(folder: Path, content: bytes) -> None:
    read_as_grid(folder, content)


@given(damaged(GRID, ODD))
def test_damaged_grid_is_read_or_refused(folder: Path, data: dict[str, Any]) -> None:
    read_as_grid(folder, toml(data))


@given(st.data())
def test_grid_is_read_as_it_is_written(folder: Path, data: st.DataObject) -> None:
    names = st.from_regex("[a-z0-9][a-z0-9_-]{0,5}", fullmatch=True)
    content = GRID | {
        "methods": data.draw(st.lists(names, min_size=1, max_size=3)),
        "seeds": data.draw(st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=3)),
        "title": data.draw(st.text(st.characters(exclude_categories=["Cs"]))),
        "set": data.draw(st.dictionaries(names, st.dictionaries(names, st.booleans() | st.integers() | st.text("aé")))),
    }
    grid = read_as_grid(folder, toml(content))
    assert grid is not None
    assert (list(grid.methods), list(grid.seeds), grid.title) == (
        content["methods"],
        content["seeds"],
        content["title"],
    )
    assert {name: grid.settings_for(name) for name in content["set"]} == content["set"]
    dumped = {key: value for key, value in grid.model_dump(mode="json", by_alias=True).items() if value is not None}
    assert read_as_grid(folder, toml(dumped)) == grid


@pytest.fixture(scope="module")
def data_folder(folder: Path) -> Path:
    place = folder / "data"
    place.mkdir()
    np.savez(place / "toy.npz", x=np.zeros((2, 8, 8, 1), np.uint8), y=np.arange(2))
    (place / "toy.safetensors").write_bytes(b"")
    return place


def read_as_manifest(data_folder: Path, content: bytes) -> bool:
    path = data_folder / MANIFEST
    path.write_bytes(content)
    try:
        manifest = read_manifest(path, confined=True)
    except DfqError as error:
        check_message(error, path)
        return False
    for dataset in manifest.datasets.values():
        assert dataset.evaluate is not None
        assert dataset.evaluate.resolve().is_relative_to(data_folder.resolve())
        assert dataset.classes >= 2
        assert DatasetSpec.from_dict(json.loads(json.dumps(dataset.as_dict(), allow_nan=False))) == dataset
    for model in manifest.models:
        assert not model.trusted
        assert model.weights is None or model.weights.resolve().is_relative_to(data_folder.resolve())
        assert ModelSpec.from_dict(json.loads(json.dumps(model.as_dict(), allow_nan=False))) == model
        assert all(math.isfinite(value) for value in (*model.card.mean, *model.card.std))
        assert min(*model.card.input_size, *model.card.std) > 0
    Catalogue.discover(data_folders([data_folder], {}))
    return True


@given(any_file)
def test_any_file_is_a_manifest_or_a_message(data_folder: Path, content: bytes) -> None:
    read_as_manifest(data_folder, content)


@given(damaged(DATA, ODD))
def test_damaged_manifest_is_read_or_refused(data_folder: Path, data: dict[str, Any]) -> None:
    read_as_manifest(data_folder, toml(data))


@given(any_file)
def test_any_file_of_fetched_models_is_read_or_refused(data_folder: Path, content: bytes) -> None:
    (data_folder / MANIFEST).write_bytes(toml(DATA))
    path = data_folder / FETCHED
    path.write_bytes(content)
    card = ModelCard((1, 8, 8), (0.3,), (0.4,), 10)
    model = ModelSpec("toy", "digits:resnet8", "digits:resnet8", card, weights=data_folder / "toy.safetensors")
    try:
        add_fetched_model(data_folder, model)
    except DfqError as error:
        check_message(error, path)
    finally:
        path.unlink()


def test_the_examples_are_read(folder: Path, data_folder: Path) -> None:
    assert read_as_grid(folder, toml(GRID)) is not None
    assert read_as_manifest(data_folder, toml(DATA))
