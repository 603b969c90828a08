from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from dfqbench.run.store.source_cache import load_source, save_source
from dfqbench.synth.source import FixedSource

CPU = torch.device("cpu")
COST: dict[str, Any] = {"seconds": 12.5, "cpu_seconds": 12.0, "counts": {"images": 64}, "peak_mib": 3.0, "flags": []}


def source() -> FixedSource:
    return FixedSource(torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(4))


def test_saved_source_is_loaded_with_its_cost(tmp_path: Path) -> None:
    assert save_source(source(), tmp_path / "abcd", "here", COST)
    saved = load_source(tmp_path / "abcd", CPU, "here")
    assert saved is not None
    loaded, cost = saved
    assert torch.equal(loaded.sample(4).images, source().sample(4).images)
    assert cost == COST | {"id": "abcd"}
    assert [file.name for file in (tmp_path / "abcd").glob(".*")] == []


def test_source_without_cpu_seconds_is_loaded(tmp_path: Path) -> None:
    save_source(source(), tmp_path, "here", {key: COST[key] for key in ("seconds", "counts", "peak_mib")})
    saved = load_source(tmp_path, CPU, "here")
    assert saved is not None
    assert (saved[1]["cpu_seconds"], saved[1]["flags"]) == (None, [])


def test_source_of_another_environment_is_loaded_on_request_only(tmp_path: Path) -> None:
    save_source(source(), tmp_path, "there", COST)
    assert load_source(tmp_path, CPU, "here") is None
    assert load_source(tmp_path, CPU, None) is not None


@pytest.mark.parametrize(
    ("file", "content"),
    [
        *(("state.safetensors", content) for content in ("", "not a checkpoint", "cos\nsystem\n(S'false'\ntR.")),
        *(("source.json", content) for content in ("", "{}", '{"environment": "here", "cost": 3}')),
        ("source.json", '{"cost": {"seconds": "x"}}'),
        ("source.json", '{"cost": {"seconds": 1, "cpu_seconds": "x"}}'),
    ],
)
def test_torn_files_are_not_loaded(file: str, content: str, tmp_path: Path) -> None:
    save_source(source(), tmp_path, "here", COST)
    (tmp_path / file).write_text(content)
    assert load_source(tmp_path, CPU, "here") is None


def test_class_without_from_state_is_not_saved(tmp_path: Path) -> None:
    class Unshared(FixedSource):
        from_state = None  # type: ignore[assignment]

    assert not save_source(Unshared(torch.zeros(1, 1, 8, 8)), tmp_path / "abcd", "here", COST)
    assert not (tmp_path / "abcd").exists()


def test_description_does_not_choose_what_is_imported(tmp_path: Path) -> None:
    save_source(source(), tmp_path, "here", COST)
    description = tmp_path / "source.json"
    description.write_text(description.read_text().replace("dfqbench.synth.source:FixedSource", "antigravity:x"))
    assert load_source(tmp_path, CPU, "here") is None
    assert "antigravity" not in sys.modules
