"""`fetched.toml`: what `dfqbench fetch` put into a data folder, in the form of a manifest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tomli_w
from filelock import FileLock

from dfqbench.api.errors import InputError
from dfqbench.bounded import read_toml
from dfqbench.models.spec import ModelSpec
from dfqbench.targets.manifest import FETCHED

_HEADER = "# Written by dfqbench fetch; write your own data sets and models into targets.toml.\n"


def fetched_models(folder: Path) -> list[dict[str, Any]]:
    """The model tables of a folder's `fetched.toml`; empty without one.

    Raises:
        InputError: the file is not TOML.
    """
    path = folder / FETCHED
    if not path.is_file():
        return []
    return [dict(table) for table in read_toml(path).get("models", [])]


def note_model(folder: Path, model: ModelSpec) -> None:
    """Adds a model to a folder's `fetched.toml`, in place of an older entry of its name; other readers never see half.

    Args:
        folder: the data folder.
        model: the model; its weights lie below the folder.

    Raises:
        InputError: a name is not Unicode text (it holds a lone surrogate), or the present file is not TOML.
    """
    path = folder / FETCHED
    with FileLock(folder / f".{FETCHED}.lock"):
        key = (model.target, model.name)
        tables = [table for table in fetched_models(folder) if (table.get("target"), table.get("name")) != key]
        tables.append(_table(folder, model))
        part = path.with_suffix(".part")
        try:
            part.write_bytes((_HEADER + tomli_w.dumps({"models": tables})).encode())
        except UnicodeEncodeError as error:
            raise InputError(
                f"{path} cannot hold {model.name!r}: it is not Unicode text", "correct the name"
            ) from error
        part.replace(path)


def _table(folder: Path, model: ModelSpec) -> dict[str, Any]:
    table: dict[str, Any] = {"target": model.target, "name": model.name, "ref": model.ref}
    if model.kwargs:
        table["kwargs"] = dict(model.kwargs)
    if model.weights is not None:
        table["weights"] = model.weights.relative_to(folder).as_posix()
    if model.sha256 is not None:
        table["sha256"] = model.sha256
    table["input_size"] = list(model.card.input_size)
    table["classes"] = model.card.classes
    table["mean"] = list(model.card.mean)
    table["std"] = list(model.card.std)
    if model.top1 is not None:
        table["top1"] = model.top1
    return table
