from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from dfqbench.api import InputError
from dfqbench.models.weights import load_weights, read_weights


def network(outputs: int = 3) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, outputs))


@pytest.mark.parametrize("form", ["safetensors", "plain", "wrapped", "parallel", "uncounted.safetensors"])
def test_forms_of_weights_files(tmp_path: Path, form: str) -> None:
    source, loaded = network(), network()
    state: dict[str, Any] = dict(source.state_dict())
    path = tmp_path / f"w.{form}"
    if form == "safetensors":
        save_file(state, path)
    elif form == "plain":
        torch.save(state, path)
    elif form == "wrapped":
        torch.save({"epoch": 3, "state_dict": state}, path)
    elif form == "parallel":
        torch.save({f"module.{name}": value for name, value in state.items()}, path)
    else:
        save_file({name: value for name, value in state.items() if "num_batches" not in name}, path)
    load_weights(loaded, path)
    assert all(torch.equal(value, state[name]) for name, value in loaded.state_dict().items())


def test_code_in_a_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return ((tmp_path / "ran").touch, ())

    path = tmp_path / "evil.pt"
    torch.save({"state_dict": Evil()}, path)
    with pytest.raises(InputError, match=r"pickle that holds more than tensors.*save the weights alone") as caught:
        read_weights(path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()
    torch.save(network(), path)
    with pytest.raises(InputError, match="pickle that holds more than tensors"):
        read_weights(path)


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt", "w.pth"])
@pytest.mark.parametrize("content", [b"", b"no weights at all", b"PK\x03\x04 half a zip"])
def test_damaged_files(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=str(path)) as caught:
        read_weights(path)
    assert "\n" not in str(caught.value)


def test_truncated_files_and_files_without_weights(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "w.pt")
    with pytest.raises(InputError, match="holds no weights"):
        read_weights(tmp_path / "w.pt")
    with pytest.raises(InputError, match="there is no weights file"):
        read_weights(tmp_path / "gone.pt")
    path = tmp_path / "w.safetensors"
    save_file(network().state_dict(), path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(InputError, match="not a safetensors file"):
        read_weights(path)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (network(5).state_dict(), r"does not fit Sequential: 3.weight is 5x2, not 3x2, 3.bias is 5, not 3;"),
        (network().state_dict() | {"0.weight": torch.full((2, 1, 3, 3), torch.nan)}, r"0.weight is not finite"),
        (
            {"0.weight": torch.zeros(2, 1, 3, 3), "extra": torch.zeros(1)},
            r"0.bias is missing, 1.weight is missing, 1.bias is missing and 5 more",
        ),
    ],
)
def test_wrong_names_shapes_and_values_are_listed(tmp_path: Path, state: dict[str, Any], message: str) -> None:
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match=message):
        load_weights(network(), tmp_path / "w.safetensors")
