"""The plan: every cell of a grid, with the reasons of those that cannot run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import PositiveInt

from dfqbench.api.budget import budget_named
from dfqbench.api.errors import PluginError, Unavailable, UsageError, unknown_name
from dfqbench.api.method import Fidelity, Quantizer
from dfqbench.api.params import param
from dfqbench.grid.choice import MethodChoice, cross_images, has_own_quantize, is_offered, resolve_methods
from dfqbench.grid.schema import AUTO, MIXED, Grid
from dfqbench.models.identity import model_identity
from dfqbench.models.spec import ModelSpec
from dfqbench.plugins import LoadedOffer, Plugins, source_files, source_hash
from dfqbench.plugins.params import build_params, params_dict
from dfqbench.plugins.registry import REAL
from dfqbench.run.plan.cell import DATA_CODE, Cell, MethodPart, Part, Problem
from dfqbench.run.plan.identity import host_code
from dfqbench.run.store.environment import resolve_precision
from dfqbench.targets.catalogue import Catalogue
from dfqbench.targets.folders import decoded_folder
from dfqbench.targets.spec import DatasetSpec, MissingModel, fingerprint, guarded_paths

PREFERRED = ("imagenet", "cifar10", "digits")
"""Targets of a grid that names none: the first complete one."""
MOST_NAMES = 3
"""Names in a list that a line of text writes out."""
_Network = tuple[str, ModelSpec | None, dict[str, Any], Problem | None]
"""Name, network, identity of network and weights, and why it cannot be used."""


@dataclass(frozen=True)
class RealParams:
    """Parameters of the real-data control. Its images are chosen by the host; plugins get no data."""

    images: PositiveInt = param(
        1024,
        help="images drawn from the training split; those that equal an evaluation image are dropped",
        source="a choice of this benchmark: 16 calibration batches",
    )


@dataclass(frozen=True, slots=True)
class Plan:
    """The cells of a run."""

    grid: Grid  # the grid, selectors applied
    cells: list[Cell]  # every cell; cells that share a source follow one another
    notes: list[str] = field(default_factory=list)  # what targets lack that a grid without a target would rather use
    guarded: tuple[Path, ...] = ()  # the real data of every target that is here, used or not
    problems: tuple[str, ...] = ()  # data folders of plugins that could not be read
    others: tuple[str, ...] = ()  # complete targets that it does not use

    @property
    def shortened(self) -> list[str]:
        """Say how short the schedules of each budget are; empty for the published ones."""
        return list(dict.fromkeys(cell.budget.shortened for cell in self.cells if cell.budget.shortened))

    @property
    def contents(self) -> str:
        """Say what is run on what: `zeroq, noise on digits (resnet8), w4a4@gdfq, seed 0`."""
        cells = self.cells
        targets = dict.fromkeys(cell.dataset.name for cell in cells)
        networks = {
            name: _named("networks", (c.model_name.rpartition(":")[2] for c in cells if c.dataset.name == name))
            for name in targets
        }
        methods = _named("methods", (cell.choice.label for cell in cells))
        places = " and ".join(f"{target} ({names})" for target, names in networks.items())
        schemes, seeds = _named("schemes", (c.scheme.label for c in cells)), dict.fromkeys(c.seed for c in cells)
        return f"{methods} on {places}, {schemes}, seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"


@dataclass(frozen=True, slots=True)
class _Method:
    """A method and its quantizer."""

    choice: MethodChoice
    method: MethodPart
    quantizer: Part
    problem: Problem | None = None


def build_plan(grid: Grid, catalogue: Catalogue, plugins: Plugins, device: str = "cpu") -> Plan:
    """Expand a grid.

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
    chosen = resolve_methods(grid.methods, plugins, grid.controls, recipe=grid.recipe, absent=grid.absent)
    methods = [_method(choice, grid, plugins) for choice in chosen]
    families = plugins.model_families
    cells: list[Cell] = []
    for name in targets:
        target = catalogue.target(name)
        if target.dataset is None:
            raise UsageError(f"target '{name}' cannot be used: {target.missing}")
        # Hashing data and weights reads whole files: once for the target, and once for each network.
        content = fingerprint(target.dataset)
        on_target = [_on_target(method, target.dataset, content) for method in methods]
        for model in catalogue.models(name, grid.models_for(name) or ()):
            network = _network(model, families)
            for method in on_target:
                cells += _cells(grid, target.dataset, content, network, method, precision=precision)
    datasets = [target.dataset for target in catalogue.targets.values() if target.dataset is not None]
    guarded = dict.fromkeys(path for dataset in datasets for path in guarded_paths(dataset))
    guarded |= {decoded_folder().absolute(): None}
    others = [name for name in catalogue.names() if name not in targets and not catalogue.why_incomplete(name)]
    return Plan(grid, cells, notes, tuple(guarded), catalogue.problems, tuple(others))


def _named(plural: str, names: Iterable[str]) -> str:
    """Return up to three different names, else how many there are."""
    unique = list(dict.fromkeys(names))
    return ", ".join(unique) if len(unique) <= MOST_NAMES else f"{len(unique)} {plural}"


def _targets(grid: Grid, catalogue: Catalogue) -> tuple[list[str], list[str]]:
    if grid.on:
        for name in grid.on:
            catalogue.target(name)
        return list(grid.on), []
    missing: list[str] = []
    for name in PREFERRED:
        models = grid.models_for(name) or ()
        reason = "not found" if name not in catalogue.names() else catalogue.why_incomplete(name, models)
        if not reason:
            return [name], missing
        missing.append(f"{name} is not complete: {reason}")
    raise UsageError("no target is complete", "; ".join(missing))


def _check_settings(grid: Grid, plugins: Plugins) -> None:
    known = {*plugins.methods, *plugins.quantizers, *plugins.broken_names, REAL, MIXED}
    for key in grid.settings:
        name = key.partition(".")[0]
        if name not in known:
            raise unknown_name("method or quantizer", name, known)


def missing(grid: Grid, catalogue: Catalogue, plugins: Plugins) -> list[str]:
    """Say what the named targets of a grid and its methods lack, one line each: data, weights, libraries, plugins."""
    lines: list[str] = []
    for name in grid.on:
        models = catalogue.models(name, grid.models_for(name) or ())
        lines.append(catalogue.target(name).missing)
        lines += [f"{name}: {model.reason}" for model in models if isinstance(model, MissingModel)]
    choices = resolve_methods(grid.methods, plugins, grid.controls, recipe=grid.recipe, absent=grid.absent)
    absent = dict.fromkeys(choice.method for choice in choices if not is_offered(choice.method, plugins))
    return [line for line in (*lines, *(f"{method}: {grid.absent[method]}" for method in absent)) if line]


def _method(choice: MethodChoice, grid: Grid, plugins: Plugins) -> _Method:
    try:
        if is_offered(choice.method, plugins):
            return _loaded_method(choice, grid, plugins)
        problem = Problem("unavailable", grid.absent[choice.method])
    except PluginError as error:
        problem = Problem("failed", str(error))
    method = MethodPart(choice.method, "", "", {}, title=choice.method)
    return _Method(choice, method, Part(choice.quantizer or "", "", "", {}), problem)


def _loaded_method(choice: MethodChoice, grid: Grid, plugins: Plugins) -> _Method:
    name, settings = choice.method, grid.settings_for(choice.method)
    if name == REAL:
        params, defaults = params_dict(build_params(RealParams, settings, REAL)), params_dict(RealParams())
        method = MethodPart(
            REAL,
            "dfqbench",
            "",
            params,
            _changed(params, defaults),
            title="Real training images",
            paper="a control of this benchmark",
            fidelity=str(Fidelity.CONTROL),
            control=True,
            depends_on_bits=False,
        )
        return _Method(choice, method, _quantizer(choice.quantizer or "calibrate", choice.recipe, None, grid, plugins))
    cls, offer = plugins.method_class(name), plugins.methods[name]
    images = cross_images(choice, plugins)
    params = params_dict(build_params(cls.params_type, images | settings, name))
    method = MethodPart(
        name,
        _version(offer),
        source_hash(source_files(offer.load, offer.path)),
        params,
        _changed(params, params_dict(build_params(cls.params_type, images, name))),
        title=cls.title,
        paper=cls.paper,
        link=cls.link,
        fidelity=str(cls.fidelity),
        control=cls.control,
        depends_on_bits=cls.depends_on_bits,
        own_quantize=has_own_quantize(cls),
    )
    own, _, recipe = cls.quantizer.partition(":")
    quantizer = choice.quantizer or own
    chosen = recipe if choice.quantizer is None else choice.recipe
    return _Method(choice, method, _quantizer(quantizer, chosen, recipe if quantizer == own else None, grid, plugins))


def _quantizer(name: str, recipe: str | None, default: str | None, grid: Grid, plugins: Plugins) -> Part:
    """Return a quantizer with a recipe; `default` is the method's own recipe, None: the quantizer's default."""
    if name not in plugins.quantizers:
        raise unknown_name("quantizer", name, plugins.quantizers)
    cls, offer = plugins.quantizer_class(name), plugins.quantizers[name]
    recipe = _recipe_name(cls, recipe)
    params = params_dict(build_params(cls.params_type, _recipe(cls, recipe) | grid.settings_for(name), name))
    own, defaults = (
        params_dict(build_params(cls.params_type, _recipe(cls, values), name)) for values in (recipe, default)
    )
    # The code of a plugin's range rule decides the student, too.
    rules = [rule for rule in plugins.range_rules_in(params) if rule.origin != "dfqbench"]
    code = "+".join(source_hash(source_files(part.load, part.path)) for part in (offer, *rules))
    return Part(name, _version(offer), code, params, _changed(params, defaults), recipe, _changed(params, own))


def _recipe_name(cls: type[Quantizer], recipe: str | None) -> str | None:
    return recipe or cls.default_recipe or next(iter(cls.recipes), None)


def _recipe(cls: type[Quantizer], recipe: str | None) -> dict[str, Any]:
    """Return a recipe's values; those of the quantizer's default one where none is named."""
    name = _recipe_name(cls, recipe)
    return params_dict(cls.recipes[name]) if name else {}


def _version(offer: LoadedOffer) -> str:
    return f"{offer.origin} {offer.version}".strip()


def _changed(params: dict[str, Any], defaults: dict[str, Any]) -> tuple[str, ...]:
    return tuple(key for key, value in params.items() if defaults.get(key) != value)


def _on_target(method: _Method, dataset: DatasetSpec, content: str) -> _Method:
    """Return the method on a target: the real-data control needs a training split there, and hashes its images."""
    if method.choice.method != REAL or method.problem is not None:
        return method
    if dataset.train is None and dataset.kind not in {"digits", "torchvision"}:
        message = f"{dataset.name} has no training split for the real-data control"
        return replace(method, problem=Problem("skipped", message))
    training = fingerprint(replace(dataset, evaluate=dataset.train)) if dataset.train else content
    return replace(method, method=replace(method.method, code=training + host_code(*DATA_CODE)))


def _cells(
    grid: Grid, dataset: DatasetSpec, content: str, network: _Network, method: _Method, *, precision: str
) -> Iterator[Cell]:
    name, model, key, problem = network
    budget = budget_named(dataset.default_budget if grid.budget == AUTO else grid.budget)
    for seed in grid.seeds:
        for scheme in grid.parsed_schemes:
            yield Cell(
                choice=method.choice,
                method=method.method,
                quantizer=method.quantizer,
                dataset=dataset,
                dataset_hash=content,
                model_name=name,
                model=model,
                model_key=key,
                scheme=scheme,
                budget=budget,
                precision=precision,
                threads=grid.threads,
                seed=seed,
                limit=grid.limit,
                problem=problem or method.problem,
            )


def _network(model: ModelSpec | MissingModel, families: dict[str, str]) -> _Network:
    if isinstance(model, MissingModel):
        return model.name, None, {}, Problem("unavailable", model.reason)
    try:
        return model.name, model, model_identity(model, families), None
    except Unavailable as error:
        return model.name, model, {}, Problem("unavailable", str(error))
