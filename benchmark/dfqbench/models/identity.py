"""Identity of a network in a record: reference, arguments, card, and hashes of its weights and code."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dfqbench.api.errors import InputError
from dfqbench.models.reference import CODE_SCHEME, SCHEMES, Reference, parse_reference
from dfqbench.models.spec import ModelSpec

_OWN = ("cifar", "digits")
"""Families whose architectures are part of dfqbench."""
_LIBRARIES = ("torchvision", "timm", "pytorchcv")
"""Recorded by version, not hashed: an upgrade does not throw finished cells away."""


def is_file(path: Path) -> bool:
    """Check that a path is that of a file; one that no file can have (a name of 300 letters, say) is not."""
    with contextlib.suppress(OSError, ValueError):
        return path.is_file()
    return False


def is_folder(path: Path) -> bool:
    """Check that a path is that of a folder, as `is_file` does."""
    with contextlib.suppress(OSError, ValueError):
        return path.is_dir()
    return False


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal.

    Raises:
        InputError: the file cannot be read, or is no regular file (a pipe would block for ever).
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise InputError(f"{path} is not a regular file", "replace it")
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"cannot read {path}: {reason}", "check the path and its permissions") from error


def model_identity(model: ModelSpec, families: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return plain data that changes whenever the network could compute something else.

    It holds no paths: a file is identified by its name and the hash of its content.

    Args:
        model: the model.
        families: families that plugins offer, `package.module:callable` by name.

    Raises:
        InputError: the weights or the file of the reference cannot be read.
    """
    families = families or {}
    reference = parse_reference(model.ref, families)
    data = model.as_dict()
    return {
        "ref": portable_ref(model.ref, families),
        "args": data["args"],
        "kwargs": data["kwargs"],
        "weights_sha256": None if model.weights is None else file_sha256(model.weights),
        "random_seed": model.random_seed,
        "card": data["card"],
        "code": _code_sha256(reference, families),
    }


def portable_ref(ref: str, families: Mapping[str, str] | None = None) -> str:
    """Return a reference without the folder of a file that it names; raises as `parse_reference`."""
    reference = parse_reference(ref, families or {})
    return f"{CODE_SCHEME}:{Path(reference.name).name}:{reference.function}" if reference.is_file else ref


def _code_sha256(reference: Reference, families: Mapping[str, str]) -> str | None:
    """Return the hash of the source text that defines the network; None for a library's networks."""
    if reference.scheme in _OWN:
        return _files_sha256([Path(__file__).with_name(f"{name}.py") for name in _OWN])
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
    """Find the source file of a module without importing its packages; None if it has none."""
    top, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    if not rest:
        return Path(spec.origin) if spec.origin is not None and spec.has_location else None
    bases = [Path(location, *rest) for location in spec.submodule_search_locations or ()]
    files = (file for base in bases for file in (base.with_suffix(".py"), base / "__init__.py"))
    return next((file for file in files if file.is_file()), None)
