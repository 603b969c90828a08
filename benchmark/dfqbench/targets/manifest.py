"""Manifests: `targets.toml` names the evaluation sets and networks of a data folder.

A manifest may come from a stranger, so it is data: it can name code only in the model libraries, and weights only
below its own folder.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dfqbench.api.card import InputStats, ModelCard
from dfqbench.api.errors import InputError, UsageError, unknown_name
from dfqbench.bounded import read_toml
from dfqbench.models.reference import (
    CODE_SCHEME,
    LIBRARIES,
    SCHEMES,
    in_libraries,
    parse_reference,
    unknown_architecture,
)
from dfqbench.models.spec import ModelSpec
from dfqbench.targets.domain import make_card
from dfqbench.targets.spec import DatasetSpec, MissingModel

MANIFEST = "targets.toml"
FETCHED = "fetched.toml"
"""Same form as `targets.toml`; written by `dfqbench fetch`."""


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Dataset(_Table):
    kind: Literal["npz", "imagenet-folder", "torchvision"]
    evaluate: str
    train: str | None = None
    classes: int = Field(ge=2)
    subset_of: str | None = None
    resize: int | None = Field(default=None, ge=0)
    crop: int | None = Field(default=None, ge=1)
    default_budget: Literal["paper", "medium", "short", "smoke"] = "paper"


class _Stats(_Table):
    mean: list[float]
    std: list[float]


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
    stats: _Stats | None = None
    top1: float | None = Field(default=None, ge=0, le=100)


class _File(_Table):
    datasets: dict[str, _Dataset] = {}
    models: list[_Model] = []


_TABLES: dict[str, type[_Table]] = {"datasets": _Dataset, "models": _Model, "stats": _Stats}


@dataclass(frozen=True, slots=True)
class Manifest:
    """What one manifest declares.

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


def read_manifest(path: Path, families: Iterable[str] = ()) -> Manifest:
    """Reads a `targets.toml` or `fetched.toml`.

    Args:
        path: the file; relative paths in it start from its folder.
        families: model families that plugins offer.

    Raises:
        InputError: the file is not TOML, has unknown keys or values of a wrong type, names an evaluation set that is
            not there, or a path that leaves the folder.
    """
    raw = _parsed(path)
    folder = path.parent.absolute()
    datasets = {name: _dataset(path, folder, name, table) for name, table in raw.datasets.items()}
    models: list[ModelSpec] = []
    unavailable: list[tuple[str, MissingModel]] = []
    seen: set[tuple[str, str]] = set()
    for table in raw.models:
        where = f"{path}, model '{table.name}'"
        if (table.target, table.name) in seen:
            raise InputError(f"{where} is declared twice for target '{table.target}'", "give each its own name")
        seen.add((table.target, table.name))
        made = _model(where, folder, table, datasets.get(table.target), families)
        if isinstance(made, MissingModel):
            unavailable.append((table.target, made))
        else:
            models.append(made)
    return Manifest(path, datasets, tuple(models), tuple(unavailable))


def _parsed(path: Path) -> _File:
    try:
        return _File.model_validate(read_toml(path))
    except ValidationError as error:
        raise _explained(path, error) from error


def _explained(path: Path, error: ValidationError) -> InputError:
    """The first fault of a manifest as one line, with the nearest valid key where a key is unknown."""
    # A misspelt key shows twice: as unknown, and as another one missing. Name the misspelling.
    first = min(error.errors(), key=lambda fault: fault["type"] != "extra_forbidden")
    loc = [part for part in first["loc"] if part not in {"int", "list[int]"}]
    where = ".".join(f"[{part}]" if isinstance(part, int) else str(part) for part in loc[:-1]).replace(".[", "[")
    place = f"{path}, {where}" if where else str(path)
    if first["type"] == "extra_forbidden":
        table = next((_TABLES[str(part)] for part in reversed(loc[:-1]) if str(part) in _TABLES), _File)
        fault = unknown_name("key", str(loc[-1]), table.model_fields)
        return InputError(f"{place}: {fault.message}", fault.hint)
    if first["type"] == "missing":
        return InputError(f"{place}: '{loc[-1]}' is missing", "add it")
    return InputError(f"{place}: {loc[-1]}: {first['msg'].lower()}", "correct the value")


def _dataset(path: Path, folder: Path, name: str, table: _Dataset) -> DatasetSpec:
    where = f"{path}, dataset '{name}'"
    paths: dict[str, Path | None] = {"train": None}
    for key, text in (("evaluate", table.evaluate), ("train", table.train)):
        if text is None:
            continue
        found = _located(f"{where}: {key}", folder, text, absolute=True)
        if not (found.is_file() if table.kind == "npz" else found.is_dir()):
            kind = "file" if table.kind == "npz" else "folder"
            raise InputError(f"{where}: {key}: there is no {kind} {found}", "correct the path, or put the data there")
        paths[key] = found
    return DatasetSpec(
        name=name,
        kind=table.kind,
        evaluate=paths["evaluate"],
        train=paths["train"],
        classes=table.classes,
        subset_of=table.subset_of,
        resize=table.resize,
        crop=table.crop,
        default_budget=table.default_budget,
    )


def _located(where: str, folder: Path, text: str, *, absolute: bool) -> Path:
    path = Path(text)
    if path.is_absolute() and not absolute:
        raise InputError(f"{where}: '{text}' is absolute", "give a path relative to the manifest")
    if ".." in path.parts or not text.strip():
        raise InputError(f"{where}: '{text}' leaves the manifest's folder", "give a path without '..'")
    return folder / path


def _model(
    where: str, folder: Path, table: _Model, dataset: DatasetSpec | None, families: Iterable[str]
) -> ModelSpec | MissingModel:
    families = tuple(families)
    ref = table.ref or table.name
    try:
        reference = parse_reference(ref, families)
    except UsageError as error:
        if ref.partition(":")[0] not in (*SCHEMES, *families):
            # Perhaps the family of a plugin that is not installed: the other models are still of use.
            return MissingModel(table.name, str(error))
        raise InputError(f"{where}: {error.message}", error.hint) from error
    unknown = unknown_architecture(reference)
    if unknown is not None:
        raise InputError(f"{where}: {unknown.message}", unknown.hint)
    if reference.options:
        raise InputError(f"{where}: '?' in '{ref}'", "write arguments as kwargs = { ... }")
    if reference.scheme == CODE_SCHEME and (reference.is_file or not in_libraries(reference.name)):
        return MissingModel(
            table.name,
            f"a manifest may name code only in {', '.join(LIBRARIES)}, not '{ref}'; if you trust it, name it on the "
            f"command line: --models '{ref}'",
        )
    _check_json(where, table.args, table.kwargs)
    weights = None if table.weights is None else _located(f"{where}: weights", folder, table.weights, absolute=False)
    card = _card(where, table, dataset)
    if weights is None and table.random_seed is None:
        return MissingModel(table.name, f'no weights are named in {folder}; add weights = "..." or random_seed = 0')
    if weights is not None and not weights.is_file():
        return MissingModel(table.name, f"weights file {weights} is missing; put it there or take the model out")
    return ModelSpec(
        target=table.target,
        name=table.name,
        ref=reference.bare,
        card=card,
        args=tuple(table.args),
        kwargs=dict(table.kwargs),
        weights=weights,
        random_seed=table.random_seed if weights is None else None,
        top1=table.top1,
        sha256=table.sha256,
    )


def _check_json(where: str, args: Iterable[Any], kwargs: Mapping[str, Any]) -> None:
    pending: list[Any] = [*args, *kwargs.values()]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            pending += value.values()
        elif isinstance(value, list):
            pending += value
        elif not isinstance(value, str | int | float | bool):
            raise InputError(
                f"{where}: {type(value).__name__} is no argument", "use numbers, text, true/false and lists"
            )


def _card(where: str, table: _Model, dataset: DatasetSpec | None) -> ModelCard:
    stats = table.stats
    return make_card(
        where,
        target=table.target,
        dataset=dataset,
        input_size=table.input_size,
        classes=table.classes,
        mean=table.mean,
        std=table.std,
        stats=None if stats is None else InputStats(tuple(stats.mean), tuple(stats.std)),
    )
