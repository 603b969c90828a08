"""The plan: every cell of a grid, with its identities and with the reasons of those that cannot run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dfqbench.api.budget import budget_named
from dfqbench.api.errors import PluginError, Unavailable, UsageError, unknown_name
from dfqbench.api.method import Fidelity, Quantizer
from dfqbench.grid.choice import MethodChoice, resolve_methods
from dfqbench.grid.schema import AUTO, Grid
from dfqbench.models.identity import model_identity
from dfqbench.models.spec import ModelSpec
from dfqbench.plugins import LoadedOffer, Plugins, source_files, source_hash
from dfqbench.plugins.params import build_params, params_dict
from dfqbench.plugins.registry import REAL
from dfqbench.run.plan.cell import DATA_CODE, Cell, Part, Problem
from dfqbench.run.plan.identity import host_code
from dfqbench.run.plan.real import REAL_TITLE, RealParams
from dfqbench.run.store.environment import resolve_precision
from dfqbench.targets.catalogue import Catalogue
from dfqbench.targets.folders import decoded_folder
from dfqbench.targets.spec import DatasetSpec, MissingModel, fingerprint, guarded_paths

PREFERRED = ("imagenet", "cifar10", "digits")
"""Targets of a grid that names none: the first complete one."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run would do.

    Attributes:
        grid: the grid, selectors applied.
        cells: every cell; cells that share a source follow one another.
        notes: which target was taken, and what is missing for the others.
        guarded: the real data of every target that is here, used or not.
    """

    grid: Grid
    cells: list[Cell]
    notes: list[str] = field(default_factory=list)
    guarded: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True)
class _Method:
    """A method choice with everything that its cells share."""

    choice: MethodChoice
    method: Part
    quantizer: Part
    title: str
    fidelity: str
    control: bool
    depends_on_bits: bool
    problem: Problem | None = None


@dataclass(frozen=True, slots=True)
class _Network:
    """A network with everything that its cells share."""

    name: str
    model: ModelSpec | None
    key: dict[str, Any]
    problem: Problem | None = None


def build_plan(grid: Grid, catalogue: Catalogue, plugins: Plugins, device: str = "cpu") -> Plan:
    """Expands a grid.

    Args:
        grid: selectors applied.
        catalogue: targets that are here.
        plugins: methods and quantizers that are here.
        device: torch device of the run; decides what the precision `auto` means.

    Raises:
        UsageError: a target, model, method, quantizer or parameter is unknown, or no target is complete.
    """
    _check_settings(grid, plugins)
    precision = resolve_precision(grid.precision, device)
    targets, notes = _targets(grid, catalogue)
    methods = [_method(choice, grid, plugins) for choice in resolve_methods(grid.methods, plugins)]
    families = {name: offer.load for name, offer in plugins.models.items()}
    cells: list[Cell] = []
    for target in targets:
        found = catalogue.target(target)
        if found.dataset is None:
            raise UsageError(f"target '{target}' cannot be used: {found.missing}")
        # Hashing data and weights reads whole files: once for the target, and once for each network.
        content = fingerprint(found.dataset)
        fitted = [_fitted(method, found.dataset, content) for method in methods]
        for model in catalogue.models(target, grid.models_for(target) or ()):
            network = _network(model, families)
            for method in fitted:
                cells += _cells(grid, found.dataset, content, network, method, precision=precision)
    datasets = [target.dataset for target in catalogue.targets.values() if target.dataset is not None]
    guarded = dict.fromkeys(path for dataset in datasets for path in guarded_paths(dataset))
    guarded |= {decoded_folder().absolute(): None}
    return Plan(grid, cells, notes, tuple(guarded))


def _targets(grid: Grid, catalogue: Catalogue) -> tuple[list[str], list[str]]:
    if grid.on:
        for name in grid.on:
            catalogue.target(name)
        return list(grid.on), []
    missing: list[str] = []
    for name in PREFERRED:
        wanted = grid.models_for(name) or ()
        reason = "not found" if name not in catalogue.names() else catalogue.why_incomplete(name, wanted)
        if not reason:
            return [name], [f"target {name}", *missing]
        missing.append(f"{name} is not complete: {reason}")
    raise UsageError("no target is complete", "; ".join(missing))


def _check_settings(grid: Grid, plugins: Plugins) -> None:
    known = {*plugins.methods, *plugins.quantizers, *plugins.broken_names, REAL}
    for key in grid.settings:
        name = key.partition(".")[0]
        if name not in known:
            raise unknown_name("method or quantizer", name, known)


def _method(choice: MethodChoice, grid: Grid, plugins: Plugins) -> _Method:
    try:
        return _loaded_method(choice, grid, plugins)
    except PluginError as error:
        nothing = Part(choice.method, "", "", {})
        problem = Problem("failed", str(error))
        quantizer = Part(choice.quantizer or "", "", "", {})
        return _Method(choice, nothing, quantizer, choice.method, "unknown", False, True, problem)


def _loaded_method(choice: MethodChoice, grid: Grid, plugins: Plugins) -> _Method:
    if choice.method == REAL:
        real = build_params(RealParams, grid.settings_for(REAL), REAL)
        method = _part(REAL, "dfqbench", "", params_dict(real), params_dict(RealParams()))
        quantizer = _quantizer(choice.quantizer or "calibrate", choice.recipe, None, grid, plugins)
        return _Method(choice, method, quantizer, REAL_TITLE, str(Fidelity.CONTROL), True, False)
    kind = plugins.method_class(choice.method)
    params = build_params(kind.params_type, grid.settings_for(choice.method), choice.method)
    usual = params_dict(build_params(kind.params_type, {}, choice.method))
    method = _offered(choice.method, plugins.methods[choice.method], params_dict(params), usual)
    own, _, recipe = kind.quantizer.partition(":")
    name = choice.quantizer or own
    wanted = recipe if choice.quantizer is None else choice.recipe
    quantizer = _quantizer(name, wanted, recipe if name == own else None, grid, plugins)
    fidelity = str(kind.fidelity)
    return _Method(choice, method, quantizer, kind.title, fidelity, kind.control, kind.depends_on_bits)


def _quantizer(name: str, recipe: str | None, usual: str | None, grid: Grid, plugins: Plugins) -> Part:
    """The quantizer with a recipe; `usual` is the recipe that nobody has to write out, None: the quantizer's own."""
    if name not in plugins.quantizers:
        raise unknown_name("quantizer", name, plugins.quantizers)
    kind = plugins.quantizer_class(name)
    params = build_params(kind.params_type, _recipe(kind, recipe) | grid.settings_for(name), name)
    plain = build_params(kind.params_type, _recipe(kind, usual), name)
    part = _offered(name, plugins.quantizers[name], params_dict(params), params_dict(plain))
    # The code of a plugin's range rule decides the student, too.
    named = [rule for name, rule in plugins.range_rules.items() if name in part.params.values()]
    code = [source_hash(source_files(rule.load, rule.path)) for rule in named if rule.origin != "dfqbench"]
    return replace(part, code="+".join([part.code, *code]))


def _recipe(kind: type[Quantizer], recipe: str | None) -> dict[str, Any]:
    """A recipe's values; those of the quantizer's default one where none is named."""
    chosen = recipe or kind.default_recipe or next(iter(kind.recipes), None)
    return params_dict(kind.recipes[chosen]) if chosen else {}


def _offered(name: str, offer: LoadedOffer, params: dict[str, Any], usual: dict[str, Any]) -> Part:
    code = source_hash(source_files(offer.load, offer.path))
    return _part(name, f"{offer.origin} {offer.version}".strip(), code, params, usual)


def _part(name: str, version: str, code: str, params: dict[str, Any], usual: dict[str, Any]) -> Part:
    return Part(name, version, code, params, tuple(key for key, value in params.items() if usual.get(key) != value))


def _fitted(method: _Method, dataset: DatasetSpec, content: str) -> _Method:
    """The method on a target: the real-data control needs a training split there, and its images are part of it."""
    if method.choice.method != REAL or method.problem is not None:
        return method
    missing = _missing_training(dataset)
    if missing is not None:
        return replace(method, problem=missing)
    training = fingerprint(replace(dataset, evaluate=dataset.train)) if dataset.train else content
    return replace(method, method=replace(method.method, code=training + host_code(*DATA_CODE)))


def _cells(
    grid: Grid, dataset: DatasetSpec, content: str, network: _Network, method: _Method, *, precision: str
) -> Iterator[Cell]:
    budget = budget_named(dataset.default_budget if grid.budget == AUTO else grid.budget)
    for seed in grid.seeds:
        for scheme in grid.parsed_schemes:
            yield Cell(
                choice=method.choice,
                method=method.method,
                quantizer=method.quantizer,
                title=method.title,
                fidelity=method.fidelity,
                control=method.control,
                depends_on_bits=method.depends_on_bits,
                dataset=dataset,
                dataset_hash=content,
                model_name=network.name,
                model=network.model,
                model_key=network.key,
                scheme=scheme,
                budget=budget,
                precision=precision,
                threads=grid.threads,
                seed=seed,
                limit=grid.limit,
                problem=network.problem or method.problem,
            )


def _network(model: ModelSpec | MissingModel, families: dict[str, str]) -> _Network:
    if isinstance(model, MissingModel):
        return _Network(model.name, None, {}, Problem("unavailable", model.reason))
    try:
        return _Network(model.name, model, model_identity(model, families))
    except Unavailable as error:
        return _Network(model.name, model, {}, Problem("unavailable", str(error)))


def _missing_training(dataset: DatasetSpec) -> Problem | None:
    if dataset.train is not None or dataset.kind in {"digits", "torchvision"}:
        return None
    return Problem("skipped", f"{dataset.name} has no training split for the real-data control")
