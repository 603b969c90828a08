"""Options that several verbs share, and how a grid, its plugins and its plan are got from them."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from dfqbench.plugins import Plugins
    from dfqbench.run.plan.plan import Plan
    from dfqbench.targets.catalogue import Catalogue

GridOption = Annotated[
    str, typer.Option("--grid", metavar="NAME", help="Preset (`dfqbench grids list`) or path of a grid file.")
]
OnOption = Annotated[str | None, typer.Option("--on", metavar="TARGETS", help="For example cifar10,digits.")]
ModelsOption = Annotated[
    str | None, typer.Option("--models", metavar="MODELS", help="Networks, for example torchvision:resnet18.")
]
MethodsOption = Annotated[
    str | None,
    typer.Option(
        "--methods", metavar="METHODS", help="Methods and crosses, for example 'zeroq,noise,real,zeroq+distill'."
    ),
]
BitsOption = Annotated[
    str | None, typer.Option("--bits", metavar="SCHEMES", help="Schemes, for example w4a4,w3a3@deploy.")
]
SeedsOption = Annotated[str | None, typer.Option("--seeds", metavar="SEEDS", help="For example 0,1,2 or 0-4.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="NAME.PARAM=VALUE", help="A parameter, for example zeroq.iterations=100 (repeatable)."
    ),
]
BudgetOption = Annotated[
    str | None, typer.Option("--budget", metavar="NAME", help="Length of schedules: paper, medium, short, smoke.")
]
LimitOption = Annotated[
    int | None,
    typer.Option("--limit", metavar="N", help="Evaluate on a random part of so many images; marked in the table."),
]
ExactOption = Annotated[
    bool,
    typer.Option("--exact", help="Train in float32, every operation as the formula has it: slower, the reference."),
]
DeviceOption = Annotated[str, typer.Option("--device", metavar="DEVICE", help="auto, cpu, cuda or cuda:N.")]
DataOption = Annotated[
    list[Path] | None, typer.Option("--data", metavar="DIR", help="Data folder, besides DFQBENCH_DATA (repeatable).")
]
OutOption = Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder of results.")]
PluginOption = Annotated[
    list[Path] | None,
    typer.Option("--plugin", metavar="FILE", help="A Python file with a plugin; its code runs (repeatable)."),
]


@dataclass(frozen=True, slots=True)
class Request:
    """What `run` and `plan` are asked for."""

    grid: str
    on: str | None
    models: str | None
    methods: str | None
    bits: str | None
    seeds: str | None
    settings: list[str]
    budget: str | None
    limit: int | None
    data: list[Path]
    plugins: list[Path]
    exact: bool
    device: str


def planned(request: Request) -> tuple[Plan, Plugins]:
    """Loads plugins and targets and expands the grid.

    Raises:
        UsageError: something in the request is wrong.
    """
    from dfqbench.api.method import FileOffer
    from dfqbench.grid import apply, load_grid, parse_selection
    from dfqbench.plugins import load_plugins
    from dfqbench.run.plan.plan import build_plan
    from dfqbench.targets.catalogue import Catalogue
    from dfqbench.targets.folders import data_folders

    plugins = load_plugins(request.plugins)
    selection = parse_selection(
        on=request.on,
        models=request.models,
        methods=request.methods,
        bits=request.bits,
        seeds=request.seeds,
        budget=request.budget,
        limit=request.limit,
        settings=request.settings,
        exact=request.exact,
    )
    grid = apply(load_grid(request.grid, plugins), selection)
    families = {name: offer.load for name, offer in plugins.models.items()}
    offers = [FileOffer(offer.name, str(offer.path)) for offer in plugins.targets.values()]
    catalogue = Catalogue.discover(data_folders(request.data), offers, families=families)
    plan = build_plan(grid, catalogue, plugins, request.device)
    _check_use(plan, selection.settings, catalogue)
    return plan, plugins


def _check_use(plan: Plan, settings: Mapping[str, object], catalogue: Catalogue) -> None:
    """Refuses a plan without cells, and parameters that no cell would use."""
    from dfqbench.api.errors import UsageError

    if not plan.cells:
        targets = plan.grid.on or catalogue.names()
        raise UsageError(
            f"no model is there for {', '.join(targets)}",
            "name one, for example --models 'cifar:resnet20?weights=PATH', or put it into the folder's targets.toml",
        )
    used = {name for cell in plan.cells for name in (cell.method.name, cell.quantizer.name)}
    for key in settings:
        name = key.partition(".")[0]
        if name not in used:
            raise UsageError(
                f"--set {key} would change nothing: no cell of this plan uses '{name}'",
                "leave it out, or add what it belongs to with --methods",
            )


def checked_device(text: str) -> str:
    """The device that `--device` means.

    Raises:
        UsageError: it has another form.
    """
    from dfqbench.api.errors import UsageError
    from dfqbench.run.store.environment import resolve_device

    if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", text):
        raise UsageError(f"'{text}' is not a device", "write --device auto, cpu, cuda or cuda:0")
    return resolve_device(text)


def checked_name(text: str | None) -> str | None:
    """A run's name: it becomes that of a folder.

    Raises:
        UsageError: it has another form.
    """
    from dfqbench.api.errors import UsageError

    if text is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", text):
        raise UsageError(
            f"'{text}' is not the name of a run", "use letters, digits, '_', '.' and '-'; --out names the folder"
        )
    return text


def checked_out(path: Path) -> Path:
    """A results folder that can be written to, now or once it is made.

    Raises:
        UsageError: it is a file, lies in one, or may not be written to.
    """
    from dfqbench.api.errors import UsageError

    place = path.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir():
        raise UsageError(f"--out {path}: {place} is not a folder", "name another folder")
    if not os.access(place, os.W_OK | os.X_OK):
        raise UsageError(f"--out {path}: {place} cannot be written to", "name another folder, or change its rights")
    return path
