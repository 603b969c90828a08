"""State trees on disk: nested containers of tensors and numbers in one safetensors file that never executes code.

A tree's outline lies in the file's metadata as JSON, its tensors beside it, flat and in the order of their memory, so
that layouts (channels-last) come back as they were. A digest covers both: a file that was torn, or whose bits have
rotted, is refused. Nothing in the outline can claim more memory than the file holds.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dfqbench.api.errors import DfqError, PluginError
from dfqbench.run.store.run_folder import sync_folder

FORMAT = "1"
_SCALARS = (bool, int, str, type(None))


class TornFileError(DfqError):
    """A state file cannot be trusted: cut short, changed, or not made by dfqbench."""


@dataclass(slots=True)
class _Tensors:
    """The tensors of a tree: flat, by name, and the name of each place in memory."""

    flat: dict[str, Tensor] = field(default_factory=dict)
    names: dict[Any, str] = field(default_factory=dict)


def write_tree(path: Path, tree: Any) -> None:
    """Writes a tree under a temporary name, flushes it to disk, and renames it: whole or not at all.

    Args:
        path: where to; its folder exists.
        tree: dicts, lists and tuples of tensors, numbers, strings and None.

    Raises:
        PluginError: something else is in the tree.
        OSError: the disk is full, or the folder cannot be written to.
    """
    tensors = _Tensors()
    outline = json.dumps(_outlined(tree, tensors, "state"), allow_nan=False)
    metadata = {"format": FORMAT, "tree": outline, "digest": _digest(outline, tensors.flat)}
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        try:
            save_file(tensors.flat, temporary, metadata=metadata)
        except SafetensorError as error:
            # The library reports a full disk in an error of its own.
            raise OSError(f"{path} cannot be written: {error}") from error
        with temporary.open("rb+") as stream:
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def read_tree(path: Path, device: torch.device) -> Any:
    """Reads what `write_tree` wrote.

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
        # RecursionError is a RuntimeError: an outline that nests without end ends here.
        raise TornFileError(f"{path} is damaged: {type(error).__name__}: {error}") from error


def _read(path: Path) -> tuple[str, dict[str, Tensor]]:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    if metadata.get("format") != FORMAT:
        raise ValueError("another format")
    if any(tensor.ndim != 1 for tensor in tensors.values()) or metadata["digest"] != _digest(metadata["tree"], tensors):
        raise ValueError("it does not fit its digest")
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
        kind = "u" if isinstance(entry, tuple) else "l"
        return {kind: [_outlined(item, tensors, f"{where}[{i}]") for i, item in enumerate(entry)]}
    raise PluginError(
        f"{where} is a {type(entry).__name__}, which cannot be saved",
        "a state holds tensors, numbers, strings, None, and dicts, lists and tuples of these",
    )


def _put(tensor: Tensor, tensors: _Tensors, where: str) -> dict[str, Any]:
    data = tensor.detach()
    if data.is_sparse or data.is_quantized or data.is_complex():
        raise PluginError(f"{where} is a tensor of a kind that cannot be saved", "save its parts")
    # What lies at one place is written once: states of several students hold the same source.
    place: Any = (data.data_ptr(), data.dtype, data.device, data.numel())
    if not _is_dense(data.shape, data.stride()):
        data, place = data.contiguous(), object()
    name = tensors.names.setdefault(place if data.numel() else object(), f"{len(tensors.flat):06d}")
    if name not in tensors.flat:
        # The elements in the order of memory, copied: tensors may share storage, and a file may not.
        tensors.flat[name] = data.as_strided((data.numel(),), (1,)).to("cpu", copy=True)
    return {"t": name, "shape": list(data.shape), "stride": list(data.stride()), "on": data.device.type}


def _is_dense(shape: Any, stride: Any) -> bool:
    """Whether the elements fill a block of memory, each once."""
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
        return _taken(entry, tensors, device)
    ((kind, content),) = entry.items()
    if kind == "f":
        return float.fromhex(content)
    if kind == "d":
        return {_key(_filled(k, tensors, device)): _filled(v, tensors, device) for k, v in content}
    items = [_filled(item, tensors, device) for item in content]
    return {"l": list, "u": tuple}[kind](items)


def _key(key: Any) -> Any:
    hash(key)
    return key


def _taken(entry: Mapping[str, Any], tensors: Mapping[str, Tensor], device: torch.device) -> Tensor:
    flat, shape, stride = tensors[entry["t"]], entry["shape"], entry["stride"]
    if any(type(n) is not int or n < 0 for n in (*shape, *stride)):
        raise ValueError("a shape is malformed")
    # Shape and strides together must cover just what the file holds: no claim reaches further.
    if math.prod(shape) != flat.numel() or (flat.numel() > 0 and not _is_dense(shape, stride)):
        raise ValueError("a shape does not fit its tensor")
    place = torch.device("cpu") if entry["on"] == "cpu" else device
    return flat.to(place, copy=True).as_strided(shape, stride)
