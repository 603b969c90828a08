from __future__ import annotations

import dataclasses
import json
import sys
import types
from pathlib import Path

import pytest

from dfqbench.api import ModelCard
from dfqbench.models.identity import model_identity
from dfqbench.models.spec import ModelSpec

CARD = ModelCard((3, 32, 32), (0.5,) * 3, (0.5,) * 3, 10)


def test_identity_covers_what_is_computed(tmp_path: Path) -> None:
    weights = tmp_path / "w.safetensors"
    weights.write_bytes(b"one")
    model = ModelSpec("cifar10", "a", "cifar:resnet20", CARD, weights=weights)
    base = model_identity(model)
    json.dumps(base)
    card = dataclasses.replace(CARD, mean=(0.4, 0.5, 0.5))
    changes = {"ref": "cifar:resnet32", "kwargs": {"shortcut": "B"}, "args": (1,), "random_seed": 1, "card": card}
    for key, value in changes.items():
        assert model_identity(dataclasses.replace(model, **{key: value})) != base, key  # type: ignore[arg-type]
    assert model_identity(dataclasses.replace(model, name="other", target="other", top1=50.0)) == base
    weights.write_bytes(b"two")
    assert model_identity(model) != base


def test_identity_does_not_depend_on_paths(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.py").write_text("x = 1\n")
    first, second = (ModelSpec("t", "m", f"py:{tmp_path}/{name}/mine.py:build", CARD) for name in "ab")
    before = model_identity(first)
    assert before == model_identity(second)
    assert before["ref"] == "py:mine.py:build"
    (tmp_path / "b" / "mine.py").write_text("x = 2\n")
    assert model_identity(second) != before


def test_identity_covers_source_of_modules_and_families(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "identity_pkg"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('must not be imported')\n")
    (package / "nets.py").write_text("one\n")
    monkeypatch.syspath_prepend(tmp_path)
    module = ModelSpec("t", "m", "py:identity_pkg.nets:build", CARD)
    family = ModelSpec("t", "m", "toys:tiny", CARD)
    families = {"toys": "identity_pkg.nets:make"}
    before = [model_identity(model, families)["code"] for model in (module, family)]
    (package / "nets.py").write_text("two\n")
    after = [model_identity(model, families)["code"] for model in (module, family)]
    assert None not in before
    assert not set(before) & set(after)
    assert "identity_pkg" not in sys.modules


@pytest.mark.parametrize(
    "ref", ["timm:resnet18", "torchvision:resnet18", "py:timm.models.resnet:resnet18", "py:made_up:f"]
)
def test_identity_excludes_source_of_libraries_and_built_in_modules(monkeypatch: pytest.MonkeyPatch, ref: str) -> None:
    monkeypatch.setitem(sys.modules, "made_up", types.ModuleType("made_up"))
    assert model_identity(ModelSpec("t", "m", ref, CARD))["code"] is None
