"""`dfqbench models`: list the networks of every target, or show one."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dfqbench.api.errors import Unavailable, unknown_name
from dfqbench.cli import completion
from dfqbench.cli.completion import completing
from dfqbench.cli.layout import fitted_table, wrapped
from dfqbench.cli.options import DataOption, JsonOption, PluginOption, opened

if TYPE_CHECKING:
    from dfqbench.models.spec import ModelSpec
    from dfqbench.targets.catalogue import Catalogue
    from dfqbench.targets.spec import MissingModel

models = typer.Typer(help="List networks, or show one.", no_args_is_help=True)


@models.command("list")
def list_models(as_json: JsonOption = False, data: DataOption = None, plugin: PluginOption = None) -> None:
    """List the networks of every target.

    Those that cannot be used here are listed with the reason.
    """
    catalogue, _ = opened(data, plugin)
    rows = [_row(target, model) for target in catalogue.names() for model in catalogue.models(target)]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    body = [
        (row["name"], row["target"], row["input"], f"{row['top1']:.2f}" if row["top1"] else "", row["status"])
        for row in rows
    ]
    typer.echo(fitted_table(body, ("name", "target", "input", "top1", "status")))
    for row in rows:
        if row["reason"]:
            typer.echo("\n" + wrapped(f"{row['name']} is unavailable: {row['reason']}"))
    for name in catalogue.names():
        reason = catalogue.target(name).missing
        if reason:
            typer.echo("\n" + wrapped(reason))
    for problem in catalogue.problems:
        typer.echo(problem, err=True)


@models.command("show")
def show_model(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="A listed name, or a reference with ?weights=...",
            autocompletion=completing(completion.models),
        ),
    ],
    on: Annotated[
        str | None,
        typer.Option(metavar="TARGET", help="The target it is for.", autocompletion=completing(completion.targets)),
    ] = None,
    as_json: JsonOption = False,
    data: DataOption = None,
    plugin: PluginOption = None,
) -> None:
    """Show a network: origin, input and size.

    The network is built, with its weights.
    """
    from dfqbench.targets.spec import MissingModel

    catalogue, plugins = opened(data, plugin)
    target = default_target(catalogue, name) if on is None else on
    model = catalogue.models(target, [name])[0]
    if isinstance(model, MissingModel):
        raise Unavailable(f"{model.name} on '{target}' is not available", model.reason)
    info = _described(model, plugins.model_families)
    if as_json:
        typer.echo(json.dumps(info, indent=2))
        return
    typer.echo(fitted_table([(key, _text(value)) for key, value in info.items()]))


def _described(model: ModelSpec, families: dict[str, str]) -> dict[str, Any]:
    from dfqbench.models.build import build_teacher
    from dfqbench.models.identity import model_identity
    from dfqbench.models.summary import summarise

    summary = summarise(build_teacher(model, families=families), model.card)
    spec = model.as_dict()
    return {
        **{key: spec[key] for key in ("name", "target", "ref", "args", "kwargs", "weights")},
        "weights_sha256": model_identity(model, families)["weights_sha256"],
        **spec["card"],
        "top1": model.top1,
        **dataclasses.asdict(summary),
    }


def default_target(catalogue: Catalogue, name: str) -> str:
    """Return the first target that offers a model, available ones first, else the one its reference suggests."""
    from dfqbench.models.reference import is_reference
    from dfqbench.targets.spec import MissingModel

    offers = [(target, model) for target in catalogue.names() for model in catalogue.models(target)]
    for target, model in sorted(offers, key=lambda offer: isinstance(offer[1], MissingModel)):
        if name in (model.name, model.name.partition(":")[2]):
            return target
    if not is_reference(name):
        raise unknown_name("model", name, (model.name for _, model in offers))
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


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}={_text(part)}" for key, part in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, int):
        return f"{value:,}"
    return "none" if value is None else str(value)
