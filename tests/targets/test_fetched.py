from __future__ import annotations

from pathlib import Path

import pytest

from dfqbench.api import InputError, ModelCard
from dfqbench.models.spec import ModelSpec
from dfqbench.targets.fetched import fetched_models, note_model
from dfqbench.targets.manifest import read_manifest

CARD = ModelCard((3, 32, 32), (0.5, 0.25, 1e-3), (0.5, 0.5, 0.5), 10)
NAMES = [
    "plain",
    "\U0001f680 beyond the basic plane",
    "quotes \" and '",
    "new\nline\r\n\ttab\x00\x7f",
    "back\\slash \\u0041",
]


def model(folder: Path, name: str, **changes: object) -> ModelSpec:
    weights = folder / "w.safetensors"
    weights.write_bytes(b"x")
    return ModelSpec("cifar10", name, "cifar:resnet20", CARD, weights=weights, top1=91.5, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_written_and_read_back(tmp_path: Path, name: str) -> None:
    written = model(tmp_path, name, kwargs={name: [1, 2.5, {name: True}]}, sha256="ab" * 32)
    note_model(tmp_path, written)
    assert read_manifest(tmp_path / "fetched.toml").models == (written,)


def test_models_of_all_names_lie_in_one_file(tmp_path: Path) -> None:
    for name in (*NAMES, NAMES[0]):
        note_model(tmp_path, model(tmp_path, name))
    assert [table["name"] for table in fetched_models(tmp_path)] == [*NAMES[1:], NAMES[0]]


def test_a_lone_surrogate_is_an_error_that_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    note_model(tmp_path, model(tmp_path, "plain"))
    before = (tmp_path / "fetched.toml").read_bytes()
    with pytest.raises(InputError, match=r"cannot hold 'half \\ud83d': it is not Unicode text; correct the name"):
        note_model(tmp_path, model(tmp_path, "half \ud83d"))
    assert (tmp_path / "fetched.toml").read_bytes() == before
