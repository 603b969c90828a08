"""Manifests: `targets.toml` names the evaluation sets and networks of a data folder.

A manifest may come from a stranger, so it is data: it can name code only in the model libraries, and weights only
below its own folder.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tomli_w
from filelock import FileLock
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dfqbench.api.card import InputStats
from dfqbench.api.errors import InputError, UsageError, unknown_name
from dfqbench.models.identity import is_file, is_folder
from dfqbench.models.reference import CODE_SCHEME, LIBRARIES, SCHEMES, in_libraries, parse_reference
from dfqbench.models.spec import ModelSpec
from dfqbench.targets.cards import make_card
from dfqbench.targets.spec import DatasetSpec, MissingModel
from dfqbench.toml_file import read_toml

MANIFEST = "targets.toml"
FETCHED = "fetched.toml"
"""A manifest that `dfqbench fetch` writes."""
_HEADER = "# Written by dfqbench fetch; write your own data sets and models into targets.toml.\n"


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Stats(_Table):
    mean: list[float]
    std: list[float]


class _Dataset(_Table):
    kind: Literal["npz", "imagenet-folder", "torchvision"]
    evaluate: str
    train: str | None = None
    classes: int = Field(ge=2)
    subset_of: str | None = None
    resize: int | None = Field(default=None, ge=0)
    crop: int | None = Field(default=None, ge=1)
    default_budget: Literal["paper", "medium", "short", "tiny", "smoke"] = "paper"
    stats: _Stats | None = None


class _Model(_Table):
    target: str
    name: str = Field(min_length=1)
    ref: str | None = None
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    weights: str | None = None
    sha256: str | None = None
    random_seed: int | None = Field(default=None, ge=0)
    input_size: int | list[int] | None = None
    classes: int | None = Field(default=None, ge=2)
    mean: list[float] | None = None
    std: list[float] | None = None
    top1: float | None = Field(default=None, ge=0, le=100)


class _File(_Table):
    datasets: dict[str, _Dataset] = {}
    models: list[_Model] = []


_TABLES: dict[str, type[_Table]] = {"datasets": _Dataset, "models": _Model, "stats": _Stats}


@dataclass(frozen=True, slots=True)
class Manifest:
    """The content of one manifest.

    Attributes:
        path: the file.
        datasets: evaluation sets by name.
        models: networks whose weights are there.
        unavailable: target and reason of each network that cannot be built here.
    """

    path: Path
    datasets: Mapping[str, DatasetSpec]
    models: tuple[ModelSpec, ...]
    unavailable: tuple[tuple[str, MissingModel], ...]


def read_manifest(path: Path, families: Iterable[str] = (), *, confined: bool = False) -> Manifest:
    """Read a `targets.toml` or `fetched.toml`.

    Args:
        path: the file; relative paths in it start from its folder.
        families: model families that plugins offer.
        confined: whether data must lie below the folder; an absolute path is then refused.

    Raises:
        InputError: the file is not TOML, has unknown keys or values of a wrong type, names an evaluation set that is
            not there, or a path that leaves the folder.
    """
    try:
        content = _File.model_validate(read_toml(path))
    except ValidationError as error:
        raise _first_fault(path, error) from error
    families = tuple(families)
    datasets = {name: _dataset(path, name, table, confined=confined) for name, table in content.datasets.items()}
    models: dict[tuple[str, str], ModelSpec | MissingModel] = {}
    for table in content.models:
        where = f"{path}, model '{table.name}'"
        if (table.target, table.name) in models:
            raise InputError(f"{where} is declared twice for target '{table.target}'", "give each its own name")
        model = _model(where, path.parent.absolute(), table, datasets.get(table.target), families)
        models[table.target, table.name] = model
    return Manifest(
        path,
        datasets,
        tuple(model for model in models.values() if isinstance(model, ModelSpec)),
        tuple((target, model) for (target, _), model in models.items() if isinstance(model, MissingModel)),
    )


def fetched_models(folder: Path) -> list[dict[str, Any]]:
    """Return the model tables of a folder's `fetched.toml`; empty without one.

    Raises:
        InputError: the file is not TOML, or its models are no tables.
    """
    path = folder / FETCHED
    tables = read_toml(path).get("models", []) if path.is_file() else []
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise InputError(f"{path}: 'models' is not a list of tables", "delete the file and fetch again")
    return tables


def add_fetched_model(folder: Path, model: ModelSpec) -> None:
    """Add a model to a folder's `fetched.toml`, or replace the entry of its name; the file is replaced atomically.

    Args:
        folder: the data folder.
        model: the model; its weights lie below the folder.

    Raises:
        InputError: a name is not Unicode text (it holds a lone surrogate), or the present file is not TOML.
    """
    path = folder / FETCHED
    card = model.card
    table: dict[str, Any] = {
        "target": model.target,
        "name": model.name,
        "ref": model.ref,
        "kwargs": dict(model.kwargs) or None,
        "weights": None if model.weights is None else model.weights.relative_to(folder).as_posix(),
        "sha256": model.sha256,
        "input_size": card.input_size,
        "classes": card.classes,
        "mean": card.mean,
        "std": card.std,
        "top1": model.top1,
    }
    table = {key: value for key, value in table.items() if value is not None}
    with FileLock(folder / f".{FETCHED}.lock"):
        tables = [
            old for old in fetched_models(folder) if [old.get("target"), old.get("name")] != [model.target, model.name]
        ]
        part = path.with_suffix(".part")
        try:
            part.write_bytes((_HEADER + tomli_w.dumps({"models": [*tables, table]})).encode())
        except UnicodeEncodeError as error:
            raise InputError(
                f"{path} cannot hold {model.name!r}: it is not Unicode text", "correct the name"
            ) from error
        part.replace(path)


def _first_fault(path: Path, error: ValidationError) -> InputError:
    """Describe the first fault of a manifest in one line, with the nearest valid key where a key is unknown."""
    # A misspelt key is reported twice: as unknown, and as another one that is missing. Name the misspelling.
    fault = min(error.errors(), key=lambda fault: fault["type"] != "extra_forbidden")
    *parents, key = (part for part in fault["loc"] if part not in {"int", "list[int]"})
    place = ".".join(f"[{part}]" if isinstance(part, int) else str(part) for part in parents).replace(".[", "[")
    where = f"{path}, {place}" if place else str(path)
    if fault["type"] == "extra_forbidden":
        table = next((_TABLES[str(part)] for part in reversed(parents) if str(part) in _TABLES), _File)
        unknown = unknown_name("key", str(key), table.model_fields)
        return InputError(f"{where}: {unknown.message}", unknown.hint)
    if fault["type"] == "missing":
        return InputError(f"{where}: '{key}' is missing", "add it")
    return InputError(f"{where}: {key}: {fault['msg'].lower()}", "correct the value")


def _dataset(path: Path, name: str, table: _Dataset, *, confined: bool) -> DatasetSpec:
    paths: dict[str, Path | None] = {"evaluate": None, "train": None}
    for key, text in (("evaluate", table.evaluate), ("train", table.train)):
        if text is not None:
            where = f"{path}, dataset '{name}': {key}"
            data = paths[key] = _below(where, path.parent.absolute(), text, relative=confined)
            if not (is_file(data) if table.kind == "npz" else is_folder(data)):
                form = "file" if table.kind == "npz" else "folder"
                raise InputError(f"{where}: there is no {form} {data}", "correct the path, or put the data there")
    stats = _domain(f"{path}, dataset '{name}'", table.stats)
    return DatasetSpec(name=name, **(dict(table) | paths | {"stats": stats}))


def _domain(where: str, stats: _Stats | None) -> InputStats | None:
    """Check the statistics of a data set's images."""
    if stats is None:
        return None
    if not 0 < len(stats.mean) == len(stats.std):
        counts = f"{len(stats.mean)} values of mean and {len(stats.std)} of std"
        raise InputError(f"{where}: stats has {counts}", "give one of each a channel")
    if not all(0 <= mean <= 1 for mean in stats.mean):
        raise InputError(f"{where}: stats.mean must be from 0 to 1", "measure it on pixels in [0, 1]")
    if not all(0 < std <= 0.5 for std in stats.std):
        raise InputError(f"{where}: stats.std must be above 0, and at most 0.5", "measure it on pixels in [0, 1]")
    return InputStats(tuple(stats.mean), tuple(stats.std))


def _below(where: str, folder: Path, text: str, *, relative: bool) -> Path:
    if relative and Path(text).is_absolute():
        raise InputError(f"{where}: '{text}' is absolute", "give a path relative to the manifest")
    if ".." in Path(text).parts or not text.strip():
        raise InputError(f"{where}: '{text}' leaves the manifest's folder", "give a path without '..'")
    return folder / text


def _model(
    where: str, folder: Path, table: _Model, dataset: DatasetSpec | None, families: tuple[str, ...]
) -> ModelSpec | MissingModel:
    ref = table.ref or table.name
    try:
        reference = parse_reference(ref, families)
    except UsageError as error:
        if ref.partition(":")[0] not in (*SCHEMES, *families):
            # Perhaps the family of a plugin that is not installed: the other models are still of use.
            return MissingModel(table.name, str(error))
        raise InputError(f"{where}: {error.message}", error.hint) from error
    if reference.options:
        raise InputError(f"{where}: '?' in '{ref}'", "write arguments as kwargs = { ... }")
    if reference.scheme == CODE_SCHEME and (reference.is_file or not in_libraries(reference.name)):
        return MissingModel(
            table.name,
            f"a manifest may name code only in {', '.join(LIBRARIES)}, not '{ref}'; if you trust it, name it on the "
            f"command line: --models '{ref}'",
        )
    _check_json(where, table.args, table.kwargs)
    weights = None
    if table.weights is not None:
        weights = _below(f"{where}: weights", folder, table.weights, relative=True)
    card = make_card(
        where,
        target=table.target,
        dataset=dataset,
        **table.model_dump(include={"input_size", "classes", "mean", "std"}),
    )
    if weights is None and table.random_seed is None:
        return MissingModel(table.name, f'no weights are named in {folder}; add weights = "..." or random_seed = 0')
    if weights is not None and not is_file(weights):
        return MissingModel(table.name, f"weights file {weights} is missing; put it there or take the model out")
    return ModelSpec(
        target=table.target,
        name=table.name,
        ref=reference.bare,
        card=card,
        args=tuple(table.args),
        kwargs=table.kwargs,
        weights=weights,
        random_seed=table.random_seed if weights is None else None,
        top1=table.top1,
        sha256=table.sha256,
    )


def _check_json(where: str, args: Iterable[Any], kwargs: Mapping[str, Any]) -> None:
    """Refuse dates, times, `nan` and `inf`, which TOML has and JSON has not."""
    pending: list[Any] = [*args, *kwargs.values()]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            pending += value.values()
        elif isinstance(value, list):
            pending += value
        elif not isinstance(value, str | int | float) or (isinstance(value, float) and not math.isfinite(value)):
            name = value if isinstance(value, float) else type(value).__name__
            raise InputError(f"{where}: {name} is no argument", "use numbers, text, true/false and lists")
