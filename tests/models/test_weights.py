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


@pytest.mark.parametrize("form", ["safetensors", "plain", "wrapped", "parallel"])
def test_forms_of_weights_files(tmp_path: Path, form: str) -> None:
    source, loaded = network(), network()
    state: dict[str, Any] = dict(source.state_dict())
    contents = {
        "plain": state,
        "wrapped": {"epoch": 3, "state_dict": state},
        "parallel": {f"module.{name}": value for name, value in state.items()},
    }
    path = tmp_path / f"w.{form}"
    if form == "safetensors":
        save_file(state, path)
    else:
        torch.save(contents[form], path)
    load_weights(loaded, path)
    assert all(torch.equal(value, state[name]) for name, value in loaded.state_dict().items())


def test_num_batches_tracked_may_be_absent(tmp_path: Path) -> None:
    state = {name: value for name, value in network().state_dict().items() if "num_batches" not in name}
    save_file(state, tmp_path / "w.safetensors")
    load_weights(network(), tmp_path / "w.safetensors")


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


def test_truncated_file(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file(network().state_dict(), path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(InputError, match="not a safetensors file"):
        read_weights(path)


def test_files_without_weights(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "w.pt")
    with pytest.raises(InputError, match="holds no weights"):
        read_weights(tmp_path / "w.pt")
    with pytest.raises(InputError, match="there is no weights file"):
        read_weights(tmp_path / "gone.pt")


def test_wrong_names_and_shapes_are_listed(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file(network(5).state_dict(), path)
    with pytest.raises(InputError, match=r"does not fit Sequential: 3.weight is 5x2, not 3x2, 3.bias is 5, not 3;"):
        load_weights(network(), path)
    save_file({"0.weight": torch.zeros(2, 1, 3, 3), "extra": torch.zeros(1)}, path)
    with pytest.raises(InputError, match=r"0.bias is missing, 1.weight is missing, 1.bias is missing and 5 more"):
        load_weights(network(), path)


def test_value_that_is_not_finite(tmp_path: Path) -> None:
    model = network()
    with torch.no_grad():
        next(model.parameters())[0, 0, 0, 0] = float("nan")
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(InputError, match=r"0.weight is not finite"):
        load_weights(network(), tmp_path / "w.safetensors")
