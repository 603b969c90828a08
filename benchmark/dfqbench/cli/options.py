"""Options that several verbs share, and how a grid, its plugins and its plan are got from them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from dfqbench.plugins import Plugins
    from dfqbench.run.plan import Plan

GridOption = Annotated[str, typer.Option("--grid", help="Preset (`dfqbench grids list`) or path of a grid file.")]
OnOption = Annotated[str | None, typer.Option("--on", help="Targets, for example cifar10,digits.")]
ModelsOption = Annotated[str | None, typer.Option("--models", help="Networks, for example torchvision:resnet18.")]
MethodsOption = Annotated[
    str | None, typer.Option("--methods", help="Methods and crosses, for example 'zeroq,noise,real,zeroq+distill'.")
]
BitsOption = Annotated[str | None, typer.Option("--bits", help="Schemes, for example w4a4,w3a3@deploy.")]
SeedsOption = Annotated[str | None, typer.Option("--seeds", help="Seeds, for example 0,1,2 or 0-4.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="A parameter, for example zeroq.iterations=100; may be repeated.")
]
BudgetOption = Annotated[str | None, typer.Option("--budget", help="Length of schedules: paper, medium, short, smoke.")]
LimitOption = Annotated[
    int | None, typer.Option("--limit", help="Evaluate on a random part of so many images; marked in the table.")
]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
DataOption = Annotated[
    list[Path] | None, typer.Option("--data", help="Data folder, besides DFQBENCH_DATA; may be repeated.")
]
OutOption = Annotated[Path, typer.Option("--out", help="Folder of results.")]
PluginOption = Annotated[
    list[Path] | None, typer.Option("--plugin", help="A Python file with a plugin (its code runs); may be repeated.")
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


def planned(request: Request) -> tuple[Plan, Plugins]:
    """Loads plugins and targets and expands the grid.

    Raises:
        UsageError: something in the request is wrong.
    """
    from dfqbench.api.method import FileOffer
    from dfqbench.grid import apply, load_grid, parse_selection
    from dfqbench.plugins import load_plugins
    from dfqbench.run.plan import build_plan
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
    )
    grid = apply(load_grid(request.grid, plugins), selection)
    families = {name: offer.load for name, offer in plugins.models.items()}
    offers = [FileOffer(offer.name, str(offer.path)) for offer in plugins.targets.values()]
    catalogue = Catalogue.discover(data_folders(request.data), offers, families=families)
    return build_plan(grid, catalogue, plugins), plugins
