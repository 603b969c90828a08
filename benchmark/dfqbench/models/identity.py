"""What identifies a network in a record: reference, arguments, card, and hashes of its weights and code."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dfqbench.api.errors import InputError
from dfqbench.models.reference import CODE_SCHEME, SCHEMES, Reference, parse_reference
from dfqbench.models.spec import ModelSpec, card_as_dict

_OWN = ("cifar", "digits")
"""Families whose architectures are part of dfqbench."""
_LIBRARIES = ("torchvision", "timm", "pytorchcv")
"""Recorded by version, not hashed: an upgrade does not throw finished cells away."""


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(
            f"cannot read {path}: {error.strerror or error}", "check the path and its permissions"
        ) from error


def model_identity(model: ModelSpec, families: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Plain data that changes whenever the network could compute something else.

    Machine-dependent paths are left out: a file is known by its name and the hash of its content.

    Args:
        model: the model.
        families: families that plugins offer, `package.module:callable` by name.

    Raises:
        InputError: the weights or the file of the reference cannot be read.
    """
    families = families or {}
    reference = parse_reference(model.ref, families)
    ref = model.ref
    if reference.is_file:
        ref = f"{CODE_SCHEME}:{Path(reference.name).name}:{reference.function}"
    return {
        "ref": ref,
        "args": list(model.args),
        "kwargs": dict(model.kwargs),
        "weights_sha256": None if model.weights is None else file_sha256(model.weights),
        "random_seed": model.random_seed,
        "card": card_as_dict(model.card),
        "code": _code_sha256(reference, families),
    }


def _code_sha256(reference: Reference, families: Mapping[str, str]) -> str | None:
    """Hash of the source text that defines the network, or None where a library's release does."""
    if reference.scheme in _OWN:
        return _files_sha256([Path(__file__).with_name(f"{name}.py") for name in _OWN])
    if reference.is_file:
        return _files_sha256([Path(reference.name)])
    module = reference.name if reference.scheme == CODE_SCHEME else ""
    if reference.scheme not in SCHEMES:
        module = families[reference.scheme].rpartition(":")[0]
        if module.endswith(".py"):
            return _files_sha256([Path(module)])
    if not module or module.partition(".")[0] in _LIBRARIES:
        return None
    file = _module_file(module)
    return None if file is None else _files_sha256([file])


def _files_sha256(files: list[Path]) -> str:
    return hashlib.sha256("".join(file_sha256(file) for file in files).encode()).hexdigest()


def _module_file(module: str) -> Path | None:
    """Source file of a module, found without importing its packages; None if it has none."""
    top, *rest = module.split(".")
    try:
        found = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    if found is None:
        return None
    if not rest:
        return Path(found.origin) if found.origin is not None and found.has_location else None
    for location in found.submodule_search_locations or ():
        base = Path(location, *rest)
        for file in (base.with_suffix(".py"), base / "__init__.py"):
            if file.is_file():
                return file
    return None
