"""State files: nested containers of tensors and numbers in one safetensors file; reading never executes code.

The file's metadata holds the outline of the containers as JSON; the tensors are flat, in the order of their memory, so
that layouts (channels-last) are kept. A digest covers both, so that damaged files are refused. No shape in the outline
can exceed what the file holds.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dfqbench.api.errors import DfqError, PluginError
from dfqbench.run.store.files import replaced

FORMAT = "1"
_SCALARS = (bool, int, str, type(None))


class TornFileError(DfqError):
    """A state file is damaged, or not made by dfqbench."""


@dataclass(slots=True)
class _Tensors:
    """The tensors of a state: flat, by name, and the name of each place in memory."""

    flat: dict[str, Tensor] = field(default_factory=dict)
    names: dict[Any, str] = field(default_factory=dict)


def write_state(path: Path, state: Any) -> None:
    """Write a state, whole or not at all.

    Args:
        path: where to; its folder exists.
        state: dicts, lists and tuples of tensors, numbers, strings and None.

    Raises:
        PluginError: something else is in the state.
        OSError: the disk is full, or the folder cannot be written to.
    """
    tensors = _Tensors()
    outline = json.dumps(_outlined(state, tensors, "state"), allow_nan=False)
    metadata = {"format": FORMAT, "tree": outline, "digest": _digest(outline, tensors.flat)}
    with replaced(path) as temporary:
        try:
            save_file(tensors.flat, temporary, metadata=metadata)
        except SafetensorError as error:
            # The library reports a full disk in an error of its own.
            raise OSError(f"{path} cannot be written: {error}") from error


def read_state(path: Path, device: torch.device) -> Any:
    """Read what `write_state` wrote.

    Args:
        path: the file.
        device: where tensors go that were on an accelerator; those of the CPU stay there.

    Raises:
        TornFileError: the file is damaged or of another kind.
        FileNotFoundError: there is none.
    """
    if not path.is_file():
        raise FileNotFoundError(path)
    try:
        outline, tensors = _read(path)
        return _filled(json.loads(outline), tensors, device)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, IndexError, RuntimeError) as error:
        # A RuntimeError may be a RecursionError: an outline nested too deep.
        raise TornFileError(f"{path} is damaged: {type(error).__name__}: {error}") from error


def _read(path: Path) -> tuple[str, dict[str, Tensor]]:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    if metadata.get("format") != FORMAT:
        raise ValueError("another format")
    if any(tensor.ndim != 1 for tensor in tensors.values()) or metadata["digest"] != _digest(metadata["tree"], tensors):
        raise ValueError("its digest differs")
    return metadata["tree"], tensors


def _digest(outline: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.blake2b(outline.encode(), digest_size=16)
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} ".encode())
        digest.update(tensors[name].view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _outlined(entry: Any, tensors: _Tensors, where: str) -> Any:
    if isinstance(entry, Tensor):
        return _put(entry, tensors, where)
    if isinstance(entry, float):
        return {"f": entry.hex()}
    if type(entry) in _SCALARS:
        return entry
    if isinstance(entry, Mapping):
        return {"d": [[_outlined(k, tensors, where), _outlined(v, tensors, f"{where}.{k}")] for k, v in entry.items()]}
    if isinstance(entry, tuple | list):
        items = [_outlined(item, tensors, f"{where}[{i}]") for i, item in enumerate(entry)]
        return {"u" if isinstance(entry, tuple) else "l": items}
    raise PluginError(
        f"{where} is a {type(entry).__name__}, which cannot be saved",
        "a state holds tensors, numbers, strings, None, and dicts, lists and tuples of these",
    )


def _put(tensor: Tensor, tensors: _Tensors, where: str) -> dict[str, Any]:
    data = tensor.detach()
    if data.is_sparse or data.is_quantized or data.is_complex():
        raise PluginError(f"{where} is a sparse, quantized or complex tensor, which cannot be saved", "save its parts")
    # Tensors with the same memory are written once: states of several students hold the same source.
    place: Any = (data.data_ptr(), data.dtype, data.device, data.numel())
    if not _is_dense(data.shape, data.stride()):
        data, place = data.contiguous(), object()
    name = tensors.names.setdefault(place if data.numel() else object(), f"{len(tensors.flat):06d}")
    if name not in tensors.flat:
        # Copied in the order of memory: safetensors accepts no shared storage.
        tensors.flat[name] = data.as_strided((data.numel(),), (1,)).to("cpu", copy=True)
    return {"t": name, "shape": list(data.shape), "stride": list(data.stride()), "on": data.device.type}


def _is_dense(shape: Any, stride: Any) -> bool:
    """Check that the elements fill a block of memory, each once."""
    order = sorted((s, n) for n, s in zip(shape, stride, strict=True) if n != 1)
    expected = 1
    for step, size in order:
        if step != expected:
            return False
        expected *= size
    return True


def _filled(entry: Any, tensors: Mapping[str, Tensor], device: torch.device) -> Any:
    if not isinstance(entry, dict):
        if type(entry) not in _SCALARS:
            raise ValueError("the outline is malformed")
        return entry
    if "t" in entry:
        return _tensor(entry, tensors, device)
    ((container, content),) = entry.items()
    if container == "f":
        return float.fromhex(content)
    if container == "d":
        return {_filled(k, tensors, device): _filled(v, tensors, device) for k, v in content}
    items = [_filled(item, tensors, device) for item in content]
    return {"l": list, "u": tuple}[container](items)


def _tensor(entry: Mapping[str, Any], tensors: Mapping[str, Tensor], device: torch.device) -> Tensor:
    flat, shape, stride = tensors[entry["t"]], entry["shape"], entry["stride"]
    if any(type(n) is not int or n < 0 for n in (*shape, *stride)):
        raise ValueError("a shape is malformed")
    # Shape and strides must cover exactly what the file holds, so that no view reaches further.
    if math.prod(shape) != flat.numel() or (flat.numel() > 0 and not _is_dense(shape, stride)):
        raise ValueError("a shape differs from its tensor")
    place = torch.device("cpu") if entry["on"] == "cpu" else device
    return flat.to(place, copy=True).as_strided(shape, stride)
