"""`dfqbench models`: networks by target, and what is missing of those that cannot be built."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from dfqbench.models.spec import ModelSpec
    from dfqbench.targets.catalogue import Catalogue
    from dfqbench.targets.spec import MissingModel

DataOption = Annotated[
    list[Path] | None, typer.Option("--data", metavar="DIR", help="Data folder, besides DFQBENCH_DATA (repeatable).")
]
PluginOption = Annotated[
    list[Path] | None, typer.Option("--plugin", metavar="FILE", help="Also load this local plugin file (repeatable).")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def register(app: typer.Typer) -> None:
    """Adds the verb to the command line."""
    group = typer.Typer(help="List networks, or show one.", no_args_is_help=True)
    group.command("list")(list_models)
    group.command("show")(show_model)
    app.add_typer(group, name="models")


def list_models(as_json: JsonOption = False, data: DataOption = None, plugin: PluginOption = None) -> None:
    """List the networks of every target.

    Those that cannot be used here are listed with the reason.
    """
    catalogue, _ = opened(data or [], plugin or [])
    rows = [_row(target, model) for target in catalogue.names() for model in catalogue.models(target)]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    from tabulate import tabulate

    columns = ("name", "target", "input", "top1", "status")
    typer.echo(tabulate([[row[column] for column in columns] for row in rows], columns, floatfmt=".2f"))
    for row in rows:
        if row["reason"]:
            typer.echo(f"\n{row['name']} is unavailable: {row['reason']}")
    for name in catalogue.names():
        why = catalogue.target(name).missing
        if why:
            typer.echo(f"\n{why}")
    for problem in catalogue.problems:
        typer.echo(problem, err=True)


def show_model(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A listed name, or a reference with ?weights=...")],
    on: Annotated[str | None, typer.Option("--on", metavar="TARGET", help="The target it is for.")] = None,
    as_json: JsonOption = False,
    data: DataOption = None,
    plugin: PluginOption = None,
) -> None:
    """Show a network: origin, input and size.

    The network is built, with its weights.
    """
    from dfqbench.api.errors import Unavailable
    from dfqbench.targets.spec import MissingModel

    catalogue, families = opened(data or [], plugin or [])
    target = on or _home(catalogue, name)
    model = catalogue.models(target, [name])[0]
    if isinstance(model, MissingModel):
        raise Unavailable(f"{model.name} on '{target}' is not available", model.reason)
    info = describe(model, families)
    if as_json:
        typer.echo(json.dumps(info, indent=2))
        return
    from tabulate import tabulate

    typer.echo(tabulate([[key, _said(value)] for key, value in info.items()], tablefmt="plain", disable_numparse=True))


def opened(data: list[Path], plugin: Sequence[Path] = ()) -> tuple[Catalogue, dict[str, str]]:
    """The catalogue of the data folders and plugins, and the model families that plugins offer."""
    from dfqbench.plugins import load_plugins
    from dfqbench.targets.catalogue import Catalogue
    from dfqbench.targets.folders import data_folders

    plugins = load_plugins(plugin)
    families = {name: offer.load for name, offer in plugins.models.items()}
    return Catalogue.discover(data_folders(data), plugins.targets.values(), families), families


def describe(model: ModelSpec, families: dict[str, str]) -> dict[str, Any]:
    """Everything that there is to know about a network, as plain data."""
    import dataclasses

    from dfqbench.models.build import build_teacher
    from dfqbench.models.identity import model_identity
    from dfqbench.models.summary import summarise

    summary = summarise(build_teacher(model, families=families), model.card)
    facts = model.as_dict()
    identity = model_identity(model, families)
    return {
        **{key: facts[key] for key in ("name", "target", "ref", "args", "kwargs", "weights")},
        "weights_sha256": identity["weights_sha256"],
        **facts["card"],
        "top1": model.top1,
        **dataclasses.asdict(summary),
    }


def _home(catalogue: Catalogue, name: str) -> str:
    """The target that a model is shown for: the first that offers it, else the one its reference suggests."""
    from dfqbench.api.errors import unknown_name
    from dfqbench.models.reference import is_reference
    from dfqbench.models.spec import ModelSpec

    offers = [
        (isinstance(model, ModelSpec), target, model.name)
        for target in catalogue.names()
        for model in catalogue.models(target)
    ]
    # An available one before one that is only known by name.
    for _, target, known in sorted(offers, key=lambda offer: not offer[0]):
        if name in (known, known.partition(":")[2]):
            return target
    if not is_reference(name):
        raise unknown_name("model", name, (known for _, _, known in offers))
    return {"cifar": "cifar10", "digits": "digits"}.get(name.partition(":")[0], "imagenet")


def _row(target: str, model: ModelSpec | MissingModel) -> dict[str, Any]:
    from dfqbench.targets.spec import MissingModel

    row: dict[str, Any] = {"name": model.name, "target": target, "ref": "", "weights": None, "input": "", "top1": None}
    if isinstance(model, MissingModel):
        return row | {"status": "unavailable", "reason": model.reason}
    return row | {
        "ref": model.ref,
        "weights": None if model.weights is None else str(model.weights),
        "input": "x".join(str(size) for size in model.card.input_size),
        "top1": model.top1,
        "status": "ok",
        "reason": "",
    }


def _said(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}={_said(part)}" for key, part in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, int):
        return f"{value:,}"
    return "none" if value is None else str(value)
