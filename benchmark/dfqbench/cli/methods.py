"""`dfqbench methods`: what can be run, where it came from, and what is wrong with what cannot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from dfqbench.api.method import Method, Quantizer
    from dfqbench.plugins import Plugins

PluginOption = Annotated[
    list[Path] | None, typer.Option("--plugin", metavar="FILE", help="Also load this local plugin file (repeatable).")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]

REAL_TITLE = "Real training images (ceiling, made by the host)"


def register(app: typer.Typer) -> None:
    """Adds the verb to the command line."""
    group = typer.Typer(help="List methods, or show one with its parameters.", no_args_is_help=True)
    group.command("list")(list_methods)
    group.command("show")(show_method)
    group.command("new")(new_method)
    group.command("check")(check_method)
    app.add_typer(group, name="methods")


def list_methods(as_json: JsonOption = False, plugin: PluginOption = None) -> None:
    """List every method and every broken plugin."""
    from dfqbench.plugins import load_plugins

    plugins = load_plugins(plugin or ())
    rows = method_rows(plugins)
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    from tabulate import tabulate

    columns = ("name", "title", "fidelity", "quantizer", "origin", "version", "status")
    typer.echo(tabulate([[row[column] for column in columns] for row in rows], columns, disable_numparse=True))
    for row in rows:
        if row["reason"]:
            typer.echo(f"\n{row['name']} ({row['origin']}) is broken: {row['reason']}")
    typer.echo(f"\nquantizers, for `--methods METHOD+QUANTIZER`: {', '.join(plugins.quantizers)}")


def method_rows(plugins: Plugins) -> list[dict[str, Any]]:
    """One row a method, competitors first, then controls, then broken plugins."""
    from dfqbench import __version__
    from dfqbench.api.errors import PluginError
    from dfqbench.grid import REAL

    rows = []
    for name, offer in plugins.methods.items():
        row = _row(name, offer.origin, offer.version)
        try:
            found = plugins.method_class(name)
        except PluginError as error:
            row |= {"status": "broken", "reason": str(error)}
        else:
            row |= {"title": found.title, "fidelity": str(found.fidelity), "quantizer": found.quantizer}
            row |= {"control": found.control}
        rows.append(row)
    rows.append(_row(REAL, "dfqbench", __version__) | {"title": REAL_TITLE, "quantizer": "calibrate", "control": True})
    rows.sort(key=lambda row: (row["control"], row["name"]))
    for broken in plugins.broken:
        status = {"status": "broken", "reason": f"{broken.stage}: {broken.message}"}
        rows.append(_row(broken.name, broken.origin, broken.version) | status)
    return rows


def _row(name: str, origin: str, version: str) -> dict[str, Any]:
    known = {"name": name, "title": "", "fidelity": "", "quantizer": "", "control": False}
    return known | {"origin": origin, "version": version, "status": "ok", "reason": ""}


def show_method(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A method, or a quantizer.")],
    as_json: JsonOption = False,
    plugin: PluginOption = None,
) -> None:
    """Show a method or quantizer with its parameters.

    Every parameter comes with default, unit, meaning and source.
    """
    from dfqbench.grid import REAL
    from dfqbench.plugins import load_plugins

    plugins = load_plugins(plugin or ())
    if name == REAL:
        info: dict[str, Any] = {"name": REAL, "kind": "method", "title": REAL_TITLE, "control": True, "params": []}
    else:
        for broken in plugins.broken:
            if broken.name == name and name in plugins.broken_names:
                typer.echo(broken.traceback, err=True)
        info = describe(name, plugins)
    typer.echo(json.dumps(info, indent=2, default=str) if as_json else _page(info))


def new_method(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The method's name, for example mymethod.")],
    kind: Annotated[
        str, typer.Option("--kind", metavar="KIND", help="images (learned directly) or generator (learns all along).")
    ] = "images",
    into: Annotated[Path, typer.Option("--into", metavar="DIR", help="Where the package's folder is made.")] = Path(),
) -> None:
    """Write an installable package with a working method, to start from."""
    from dfqbench.grid import REAL
    from dfqbench.plugins import load_plugins
    from dfqbench.scaffold import new_package

    plugins = load_plugins()
    folder, *files = new_package(name, kind, into, {*plugins.methods, *plugins.broken_names, REAL})
    for file in files:
        typer.echo(file.as_posix())
    typer.echo(f"\nit runs as it is:\n  cd {folder.as_posix()}\n  pip install -e '.[test]'")
    typer.echo(f"  dfqbench run --grid smoke --methods {name},noise\n  dfqbench methods check {name}")


def check_method(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A method.")],
    as_json: JsonOption = False,
    plugin: PluginOption = None,
    limit: Annotated[
        float, typer.Option("--limit", min=1, metavar="SECONDS", help="How long a run on a toy network may take.")
    ] = 120.0,
) -> None:
    """Check that a method keeps the contract.

    Runs it on toy networks, in this process and in one of its own. Every failing check says what to change. The exit
    status is 1 if one fails; a warning is advice.
    """
    import dataclasses

    from dfqbench.plugins import load_plugins
    from dfqbench.testing.conformance import examine

    found = []
    for finding in examine(load_plugins(plugin or ()), name, limit=limit):
        found.append(finding)
        if not as_json:
            typer.echo(f"{finding.status:8} {finding.check:11} {finding.title}")
            if finding.message and finding.status != "not run":
                typer.echo(f"{'':8} {'':11} -> {finding.message}")
    if as_json:
        typer.echo(json.dumps([dataclasses.asdict(finding) for finding in found], indent=2))
    failed = sum(finding.status == "failed" for finding in found)
    if failed:
        for finding in found:
            if finding.status == "not run":
                typer.echo(f"'{finding.check}' and what follows was not run: {finding.message}", err=True)
                break
        typer.echo(f"{name}: {failed} of {len(found)} checks failed", err=True)
        raise typer.Exit(1)


def describe(name: str, plugins: Plugins) -> dict[str, Any]:
    """Everything that there is to know about a method or quantizer, as plain data.

    Raises:
        UsageError: neither a method nor a quantizer has the name.
        PluginError: it is broken.
    """
    from dfqbench.api.errors import unknown_name
    from dfqbench.grid import REAL

    if name in plugins.quantizers and name not in plugins.methods:
        offer, quantizer = plugins.quantizers[name], plugins.quantizer_class(name)
        info: dict[str, Any] = {"name": name, "kind": "quantizer", "title": quantizer.title}
        info |= {"recipes": list(quantizer.recipes), "default_recipe": quantizer.default_recipe}
        return info | {"origin": offer.origin, "version": offer.version} | _docs(quantizer)
    if name not in plugins.methods and name not in plugins.broken_names:
        raise unknown_name("method or quantizer", name, {*plugins.methods, *plugins.quantizers, REAL})
    method = plugins.method_class(name)
    offer = plugins.methods[name]
    info = {"name": name, "kind": "method", "title": method.title, "paper": method.paper}
    info |= {"fidelity": str(method.fidelity), "quantizer": method.quantizer, "control": method.control}
    info |= {"requires": {"batchnorm": method.requires.batchnorm}, "depends_on_bits": method.depends_on_bits}
    return info | {"origin": offer.origin, "version": offer.version} | _docs(method)


def _docs(found: type[Method] | type[Quantizer]) -> dict[str, Any]:
    import dataclasses
    import inspect

    from dfqbench.api.params import describe_params
    from dfqbench.grid import params_dict

    # `describe_params` cannot tell a default made by a factory; the instance can.
    defaults = params_dict(found.params_type())
    params = [
        dataclasses.asdict(info) | {"default": defaults.get(info.name)} for info in describe_params(found.params_type)
    ]
    return {"doc": inspect.cleandoc(found.__doc__ or ""), "params": params}


def _page(info: dict[str, Any]) -> str:
    from tabulate import tabulate

    lines = [f"{info['name']}: {info['title']}", ""]
    if info.get("doc"):
        lines += [info["doc"], ""]
    facts = [
        [key.replace("_", " "), _said(entry)]
        for key, entry in info.items()
        if key not in {"name", "title", "doc", "params"}
    ]
    lines += [tabulate(facts, tablefmt="plain", disable_numparse=True), ""]
    if not info["params"]:
        return "\n".join([*lines, "no parameters"])
    columns = ("name", "default", "unit", "help", "source")
    body = [[_said(param[column]) for column in columns] for param in info["params"]]
    lines += [f"parameters, changed with `--set {info['name']}.NAME=VALUE`:", ""]
    headers = ("parameter", "default", "unit", "meaning", "source")
    table = tabulate(body, headers, disable_numparse=True, maxcolwidths=[None, 16, 12, 44, 28])
    return "\n".join([*lines, table])


def _said(entry: Any) -> str:
    if isinstance(entry, bool):
        return "yes" if entry else "no"
    if isinstance(entry, dict):
        return ", ".join(f"{key}: {_said(part)}" for key, part in entry.items())
    if isinstance(entry, list):
        return ", ".join(map(str, entry))
    return "none" if entry is None else str(entry)
