"""`dfqbench methods`: list, show, check and start methods."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dfqbench.api.errors import PluginError, unknown_name
from dfqbench.cli import completion
from dfqbench.cli.completion import completing
from dfqbench.cli.layout import fitted_table, wrapped
from dfqbench.cli.options import JsonOption, PluginOption, usable_path

if TYPE_CHECKING:
    from dfqbench.api.method import Quantizer
    from dfqbench.plugins import Plugins

REAL_TITLE = "Real training images (chosen by the host)"

methods = typer.Typer(help="List methods, or show one with its parameters.", no_args_is_help=True)


@methods.command("list")
def list_methods(as_json: JsonOption = False, plugin: PluginOption = None) -> None:
    """List every method and every broken plugin."""
    from dfqbench.plugins import load_plugins

    plugins = load_plugins(plugin or ())
    rows = _rows(plugins)
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    body = [
        (
            row["name"],
            row["title"],
            row["fidelity"] if row["status"] == "ok" else row["status"],
            row["quantizer"],
            f"{row['origin']} {row['version']}",
        )
        for row in rows
    ]
    typer.echo(fitted_table(body, ("name", "title", "fidelity", "quantizer", "origin")))
    for row in rows:
        if row["reason"]:
            typer.echo("\n" + wrapped(f"{row['name']} ({row['origin']}) is broken: {row['reason']}"))
    typer.echo("\n" + wrapped(f"quantizers, for `--methods METHOD+QUANTIZER`: {', '.join(plugins.quantizers)}"))


def _rows(plugins: Plugins) -> list[dict[str, Any]]:
    """Return one row a method: competitors first, then controls, then broken plugins."""
    from dfqbench import __version__
    from dfqbench.plugins.registry import REAL

    def row(name: str, origin: str, version: str, **known: Any) -> dict[str, Any]:
        empty = {"name": name, "title": "", "fidelity": "", "quantizer": "", "control": False}
        return empty | {"origin": origin, "version": version, "status": "ok", "reason": ""} | known

    rows = [row(REAL, "dfqbench", __version__, title=REAL_TITLE, quantizer="calibrate", control=True)]
    for name, offer in plugins.methods.items():
        known: dict[str, Any]
        try:
            method_cls = plugins.method_class(name)
        except PluginError as error:
            known = {"status": "broken", "reason": str(error)}
        else:
            known = {"title": method_cls.title, "fidelity": str(method_cls.fidelity), "quantizer": method_cls.quantizer}
            known["control"] = method_cls.control
        rows.append(row(name, offer.origin, offer.version, **known))
    rows.sort(key=lambda row: (row["control"], row["name"]))
    for broken in plugins.broken:
        reason = f"{broken.stage}: {broken.message}"
        rows.append(row(broken.name, broken.origin, broken.version, status="broken", reason=reason))
    return rows


@methods.command("show")
def show_method(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="A method, or a quantizer.",
            autocompletion=completing(completion.methods_and_quantizers),
        ),
    ],
    as_json: JsonOption = False,
    plugin: PluginOption = None,
) -> None:
    """Show a method or quantizer with its parameters.

    Every parameter comes with default, unit, meaning and source.
    """
    from dfqbench.plugins import load_plugins

    plugins = load_plugins(plugin or ())
    for broken in plugins.broken:
        if broken.name == name and name in plugins.broken_names:
            typer.echo(broken.traceback, err=True)
    info = describe(name, plugins)
    typer.echo(json.dumps(info, indent=2, default=str) if as_json else _page(info))


@methods.command("new")
def new_method(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The method's name, for example mymethod.")],
    kind: Annotated[str, typer.Option(metavar="KIND", help="images (optimized directly) or generator.")] = "images",
    into: Annotated[
        Path, typer.Option(parser=usable_path, metavar="DIR", help="Where the package's folder is made.")
    ] = Path(),
) -> None:
    """Write an installable package with a working method, to start from."""
    from dfqbench.plugins import load_plugins
    from dfqbench.plugins.registry import REAL
    from dfqbench.scaffold import new_package

    plugins = load_plugins()
    folder, *files = new_package(name, kind, into, {*plugins.methods, *plugins.quantizers, *plugins.broken_names, REAL})
    for file in files:
        typer.echo(file.as_posix())
    typer.echo(f"\nit runs as it is:\n  cd {folder.as_posix()}\n  pip install -e '.[test]'")
    typer.echo(f"  dfqbench run --grid smoke --methods {name},noise\n  dfqbench methods check {name}")


@methods.command("check")
def check_method(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="A method, quantizer or range rule.", autocompletion=completing(completion.methods)
        ),
    ],
    as_json: JsonOption = False,
    plugin: PluginOption = None,
    limit: Annotated[
        float, typer.Option(min=1, max=86_400, metavar="SECONDS", help="Time limit of a run on a toy.")
    ] = 120.0,
) -> None:
    """Check that a method, quantizer or range rule keeps the contract.

    Runs it on toy networks, in this process and in one of its own. Every failing check says what to change. The exit
    status is 1 if one fails; a warning is advice.
    """
    from dfqbench.plugins import load_plugins
    from dfqbench.testing.conformance import examine

    findings = []
    for finding in examine(load_plugins(plugin or ()), name, limit=limit):
        findings.append(finding)
        if not as_json:
            typer.echo(f"{finding.status:8} {finding.check:11} {finding.title}")
            if finding.message and finding.status != "not run":
                typer.echo(f"{'':8} {'':11} -> {finding.message}")
    if as_json:
        typer.echo(json.dumps([dataclasses.asdict(finding) for finding in findings], indent=2))
    failed = sum(finding.status == "failed" for finding in findings)
    if failed:
        skipped = next((finding for finding in findings if finding.status == "not run"), None)
        if skipped is not None:
            typer.echo(f"'{skipped.check}' and what follows was not run: {skipped.message}", err=True)
        typer.echo(f"{name}: {failed} of {len(findings)} checks failed", err=True)
        raise typer.Exit(1)


def describe(name: str, plugins: Plugins) -> dict[str, Any]:
    """Return the description of a method or quantizer, or of `mixed`, as plain data."""
    from dfqbench.grid.schema import MIXED
    from dfqbench.plugins.registry import REAL
    from dfqbench.quant.mixed import Mixed

    if name == REAL:
        return {"name": REAL, "kind": "method", "title": REAL_TITLE, "control": True, "params": []}
    if name == MIXED:
        return {"name": MIXED, "kind": "planner", "title": "widths for layers (--mixed)"} | _params(Mixed, Mixed)
    if name in plugins.quantizers and name not in plugins.methods:
        offer, quantizer_cls = plugins.quantizers[name], plugins.quantizer_class(name)
        info: dict[str, Any] = {"name": name, "kind": "quantizer", "title": quantizer_cls.title}
        info |= {"recipes": list(quantizer_cls.recipes), "default_recipe": quantizer_cls.default_recipe}
        info |= {"strength": strengths(quantizer_cls), "origin": offer.origin, "version": offer.version}
        return info | _params(quantizer_cls, quantizer_cls.params_type)
    if name not in plugins.methods and name not in plugins.broken_names:
        raise unknown_name("method or quantizer", name, {*plugins.methods, *plugins.quantizers, REAL})
    method_cls = plugins.method_class(name)
    offer = plugins.methods[name]
    info = {
        "name": name,
        "kind": "method",
        "title": method_cls.title,
        "paper": method_cls.paper,
        "link": method_cls.link,
    }
    info |= {"fidelity": str(method_cls.fidelity), "quantizer": method_cls.quantizer, "control": method_cls.control}
    info |= {"requires": dataclasses.asdict(method_cls.requires), "depends_on_bits": method_cls.depends_on_bits}
    return info | {"origin": offer.origin, "version": offer.version} | _params(method_cls, method_cls.params_type)


def strengths(quantizer_cls: type[Quantizer]) -> dict[str, list[dict[str, float]]]:
    """Return the strength of each recipe that has the parameters of `distill`, by number of classes."""
    from dfqbench.quantizers.distill_params import DistillParams
    from dfqbench.quantizers.distill_strength import CLASSES, strength

    recipes = quantizer_cls.recipes.items()
    return {
        name: [dataclasses.asdict(strength(recipe, classes)) for classes in CLASSES]
        for name, recipe in recipes
        if isinstance(recipe, DistillParams)
    }


def strength_table(by_recipe: dict[str, list[dict[str, float]]]) -> list[list[str]]:
    """Return header and rows of a table of strengths: coefficient, and in brackets its product with the rate."""
    first = next(iter(by_recipe.values()))
    rows = [
        [name, *(f"{entry['coefficient']:.3g} ({entry['product']:.3g})" for entry in entries)]
        for name, entries in by_recipe.items()
    ]
    return [["recipe", *(f"{entry['classes']:,} classes" for entry in first)], *rows]


def _params(documented: type[Any], params_type: type[Any]) -> dict[str, Any]:
    import inspect

    from dfqbench.api.params import describe_params
    from dfqbench.plugins.params import params_dict

    # `describe_params` does not know a default made by a factory; the instance does.
    defaults = params_dict(params_type())
    infos = describe_params(params_type)
    params = [dataclasses.asdict(info) | {"default": defaults.get(info.name)} for info in infos]
    return {"doc": inspect.cleandoc(documented.__doc__ or ""), "params": params}


def _page(info: dict[str, Any]) -> str:
    facts = [
        [key.replace("_", " "), _text(value)]
        for key, value in info.items()
        if key not in {"name", "title", "doc", "params", "strength"}
    ]
    doc = [*map(wrapped, info["doc"].splitlines()), ""] if info.get("doc") else []
    lines = [f"{info['name']}: {info['title']}", "", *doc, fitted_table(facts), ""]
    if info.get("strength"):
        from dfqbench.quantizers.distill_strength import MEANING

        header, *rows = strength_table(info["strength"])
        lines += [fitted_table(rows, header), "", wrapped(MEANING), ""]
    if not info["params"]:
        return "\n".join([*lines, "no parameters"])
    body = [[_text(param[key]) for key in ("name", "default", "unit", "help", "source")] for param in info["params"]]
    headers = ("parameter", "default", "unit", "meaning", "source")
    table = fitted_table(body, headers)
    return "\n".join([*lines, f"parameters, changed with `--set {info['name']}.NAME=VALUE`:", "", table])


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_text(part)}" for key, part in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "none" if value is None else str(value)
