"""`dfqbench grids`: the presets, and the grids that plugins bring."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from dfqbench.grid import GridSource

PluginOption = Annotated[
    list[Path] | None, typer.Option("--plugin", metavar="FILE", help="Also load this local plugin file (repeatable).")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def register(app: typer.Typer) -> None:
    """Adds the verb to the command line."""
    group = typer.Typer(help="List grids, or show one.", no_args_is_help=True)
    group.command("list")(list_grids)
    group.command("show")(show_grid)
    app.add_typer(group, name="grids")


def list_grids(as_json: JsonOption = False, plugin: PluginOption = None) -> None:
    """List every grid that `--grid NAME` knows."""
    from dfqbench.grid import available_grids
    from dfqbench.plugins import load_plugins

    plugins = load_plugins(plugin or ())
    rows = [_row(source) for source in available_grids(plugins).values()]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    from tabulate import tabulate

    columns = ("name", "title", "schemes", "origin", "status")
    body = [[", ".join(row[key]) if key == "schemes" else row[key] for key in columns] for row in rows]
    typer.echo(tabulate(body, columns, disable_numparse=True))
    for row in rows:
        if row["reason"]:
            typer.echo(f"\n{row['name']} is broken: {row['reason']}")
    for broken in plugins.broken:
        typer.echo(f"plugin '{broken.name}' ({broken.origin}) did not load: {broken.message}", err=True)


def _row(source: GridSource) -> dict[str, Any]:
    from dfqbench.api.errors import DfqError
    from dfqbench.grid.load import read_grid

    row: dict[str, Any] = {"name": source.name, "title": "", "schemes": [], "methods": []}
    row |= {"origin": source.origin, "path": str(source.path), "status": "ok", "reason": ""}
    try:
        grid = read_grid(source.path)
    except DfqError as error:
        return row | {"status": "broken", "reason": str(error)}
    return row | {"title": grid.title, "schemes": list(grid.schemes), "methods": list(grid.methods)}


def show_grid(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A grid's name, or the path of a TOML file.")],
    as_json: JsonOption = False,
    plugin: PluginOption = None,
) -> None:
    """Show a grid.

    Prints its file, or with --json everything that it sets, defaults included.
    """
    from dfqbench.grid import available_grids, load_grid
    from dfqbench.plugins import load_plugins

    plugins = load_plugins(plugin or ())
    grid = load_grid(name, plugins)
    if as_json:
        typer.echo(json.dumps(grid.model_dump(mode="json", by_alias=True), indent=2))
        return
    known = available_grids(plugins)
    path = known[name].path if name in known else Path(name)
    typer.echo(f"# {path}")
    typer.echo(path.read_text(encoding="utf-8").rstrip())
