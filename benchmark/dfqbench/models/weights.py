"""Weights files: safetensors, or torch checkpoints read without running code from them."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from dfqbench.api.errors import InputError, first_line

_WRAPPERS = ("state_dict", "model")
"""Keys under which training scripts store the weights among other things."""
_PREFIX = "module."
"""Prefix that torch's DataParallel puts before every name."""
_MAX_FAULTS = 3
"""Differences between file and network that a message lists."""
MAX_SHARED, MAX_EXTRA = 4, 2**20
"""Tensors that share storage may together be this many times larger than the file, and this many bytes more."""


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a state dict on the CPU.

    Args:
        path: `.safetensors`, or anything that `torch.save` wrote; a dict under `state_dict` or `model` and names that
            start with `module.` are unwrapped.

    Raises:
        InputError: the file is missing, damaged, holds code, or holds no weights.
    """
    if not path.is_file():
        raise InputError(f"there is no weights file {path}", "correct the path")
    state = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    if not state or not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()):
        raise InputError(f"{path} holds no weights", "save model.state_dict()")
    claimed = sum(value.numel() * value.element_size() for value in state.values())
    if claimed > MAX_SHARED * path.stat().st_size + MAX_EXTRA:
        # Views of one small storage can have any shape.
        raise InputError(f"{path} claims tensors of {claimed:,} bytes, more than it holds", "save the weights again")
    if all(key.startswith(_PREFIX) for key in state):
        state = {key.removeprefix(_PREFIX): value for key, value in state.items()}
    return state


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path} is not a safetensors file: {first_line(error)}", "copy or fetch it again") from error


def _check_unpacked_size(path: Path) -> None:
    """Refuse a compressed archive: torch stores tensors uncompressed."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            claimed = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise InputError(f"{path} is not a checkpoint: {first_line(error)}", "copy or fetch it again") from error
    if claimed > path.stat().st_size:
        raise InputError(
            f"{path} claims {claimed:,} bytes and holds {path.stat().st_size:,}: it is compressed or forged",
            "save the weights again with torch.save, or as safetensors",
        )


def _read_torch(path: Path) -> dict[str, Any]:
    _check_unpacked_size(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} is a pickle that holds more than tensors, so loading it could run code",
            "save the weights alone: torch.save(model.state_dict(), path), or as safetensors",
        ) from error
    except Exception as error:  # torch.load may raise anything on a damaged file
        raise InputError(f"{path} is not a checkpoint: {first_line(error)}", "copy or fetch it again") from error
    if not isinstance(content, Mapping):
        return {}
    return dict(next((content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping)), content))


def load_weights(module: nn.Module, path: Path) -> None:
    """Load a weights file into a network; every name and shape must fit.

    `num_batches_tracked` may be absent: it plays no part in eval mode.

    Raises:
        InputError: the file cannot be read, a value is not finite, or names or shapes differ (the first are named).
    """
    state, own = read_weights(path), module.state_dict()
    faults = [
        f"{name} is {_shape(state[name])}, not {_shape(value)}"
        for name, value in own.items()
        if name in state and state[name].shape != value.shape
    ]
    faults += [f"{name} is missing" for name in own if name not in state and not name.endswith("num_batches_tracked")]
    faults += [f"{name} is not of the network" for name in state if name not in own]
    if faults:
        more = f" and {len(faults) - _MAX_FAULTS} more" if len(faults) > _MAX_FAULTS else ""
        raise InputError(
            f"{path} does not fit {type(module).__name__}: {', '.join(faults[:_MAX_FAULTS])}{more}",
            "check the architecture and its arguments (classes, shortcut, width)",
        )
    broken = [name for name, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise InputError(f"{path}: {broken[0]} is not finite", "copy or fetch the file again")
    module.load_state_dict(state, strict=False)


def _shape(tensor: Tensor) -> str:
    return "x".join(str(size) for size in tensor.shape) or "a scalar"
