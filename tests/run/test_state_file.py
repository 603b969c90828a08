from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from dfqbench.api import PluginError
from dfqbench.run.store.state_file import FORMAT, TornFileError, _digest, read_state, write_state

CPU = torch.device("cpu")
HUGE = 2**40


def test_state_is_restored(tmp_path: Path) -> None:
    channels_last = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    shared = torch.arange(6.0)
    tree: dict[Any, Any] = {
        "channels_last": channels_last,
        "part": torch.randn(8, 8)[::2, 1:],
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(1.5, dtype=torch.float64),
        "bits": torch.randn(5).to(torch.bfloat16),
        "random": torch.Generator().get_state(),
        "twice": [shared, shared.view(2, 3)],
        7: (True, None, -(2**70), 0.1, float("inf"), "text"),
        (1, "key"): {},
    }
    write_state(tmp_path / "tree", tree)
    found = read_state(tmp_path / "tree", CPU)
    assert list(found) == list(tree)
    assert found["channels_last"].stride() == channels_last.stride()
    assert found[7] == tree[7]
    assert type(found[7][0]) is bool
    for key in ("channels_last", "part", "empty", "scalar", "bits", "random"):
        assert torch.equal(found[key], tree[key])
        assert found[key].dtype == tree[key].dtype
    assert torch.equal(found["twice"][1], shared.view(2, 3))
    assert [path.name for path in tmp_path.iterdir()] == ["tree"]


@pytest.mark.parametrize("entry", [object(), {1, 2}, torch.zeros(2).to_sparse(), torch.zeros(1, dtype=torch.complex64)])
def test_other_types_are_refused_by_name(entry: Any, tmp_path: Path) -> None:
    with pytest.raises(PluginError, match=r"state.deep\[1\]"):
        write_state(tmp_path / "tree", {"deep": [0, entry]})
    assert list(tmp_path.iterdir()) == []


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "tree"
    write_state(path, {"x": torch.arange(10), "n": 3})
    whole = path.read_bytes()
    for end in range(0, len(whole), 7):
        path.write_bytes(whole[:end])
        with pytest.raises(TornFileError):
            read_state(path, CPU)
    for place in range(0, len(whole), 5):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        try:
            found = read_state(path, CPU)
        except TornFileError:
            continue
        # White space around the header carries no information.
        assert torch.equal(found["x"], torch.arange(10))


def forged(path: Path, outline: Any, **tensors: torch.Tensor) -> None:
    """Write a file with a valid digest."""
    text = outline if isinstance(outline, str) else json.dumps(outline)
    save_file(tensors, path, metadata={"format": FORMAT, "tree": text, "digest": _digest(text, tensors)})


@pytest.mark.parametrize(
    "outline",
    [
        {"t": "a", "shape": [HUGE], "stride": [0], "on": "cpu"},
        {"t": "a", "shape": [HUGE], "stride": [1], "on": "cpu"},
        {"t": "a", "shape": [4], "stride": [HUGE], "on": "cpu"},
        {"t": "a", "shape": [2, 2], "stride": [2, 2], "on": "cpu"},
        {"t": "a", "shape": [-2, -2], "stride": [2, 1], "on": "cpu"},
        {"t": "a", "shape": [4.0], "stride": [1], "on": "cpu"},
        {"t": "b", "shape": [4], "stride": [1], "on": "cpu"},
        {"t": "a"},
        {"o": "os.system"},
        {"d": [[{"l": []}, 1]]},
        {"f": "import os"},
        [1, 2],
        "[" * 100_000,
        '{"l":[' * 5_000 + "]}" * 5_000,
    ],
)
def test_forged_outlines_are_refused(outline: Any, tmp_path: Path) -> None:
    forged(tmp_path / "tree", outline, a=torch.zeros(4))
    with pytest.raises(TornFileError):
        read_state(tmp_path / "tree", CPU)


def test_huge_header_and_pickle_are_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (Path(tmp_path / "mark").touch, ())

    for content in ((2**62).to_bytes(8, "little") + b"{}", pickle.dumps(Evil())):
        (tmp_path / "tree").write_bytes(content)
        with pytest.raises(TornFileError):
            read_state(tmp_path / "tree", CPU)
    assert not (tmp_path / "mark").exists()
