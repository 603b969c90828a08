"""`dfqbench grids`: list the presets and the grids of plugins, or show one."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dfqbench.api.errors import DfqError
from dfqbench.cli import completion
from dfqbench.cli.completion import completing
from dfqbench.cli.layout import fitted_table, wrapped
from dfqbench.cli.options import JsonOption, PluginOption

if TYPE_CHECKING:
    from dfqbench.plugins.offers import LoadedFile

grids = typer.Typer(help="List grids, or show one.", no_args_is_help=True)


@grids.command("list")
def list_grids(as_json: JsonOption = False, plugin: PluginOption = None) -> None:
    """List every grid that `--grid NAME` knows."""
    from dfqbench.plugins import load_plugins

    plugins = load_plugins(plugin or ())
    rows = [_row(file) for file in plugins.grids.values()]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    body = [(row["name"], row["title"] or row["status"], ", ".join(row["schemes"]), row["origin"]) for row in rows]
    typer.echo(fitted_table(body, ("name", "title", "schemes", "origin")))
    for row in rows:
        if row["reason"]:
            typer.echo("\n" + wrapped(f"{row['name']} is broken: {row['reason']}"))
    for broken in plugins.broken:
        typer.echo(f"plugin '{broken.name}' ({broken.origin}) did not load: {broken.message}", err=True)


def _row(file: LoadedFile) -> dict[str, Any]:
    from dfqbench.grid.load import read_grid

    row: dict[str, Any] = {"name": file.name, "title": "", "schemes": [], "methods": []}
    row |= {"origin": f"{file.origin} {file.version}".rstrip(), "path": str(file.path), "status": "ok", "reason": ""}
    try:
        grid = read_grid(file.path)
    except DfqError as error:
        return row | {"status": "broken", "reason": str(error)}
    return row | {"title": grid.title, "schemes": list(grid.schemes), "methods": list(grid.methods)}


@grids.command("show")
def show_grid(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="A grid's name, or the path of a TOML file.",
            autocompletion=completing(completion.grids),
        ),
    ],
    as_json: JsonOption = False,
    plugin: PluginOption = None,
) -> None:
    """Show a grid.

    Prints its file, or with --json everything that it sets, defaults included.
    """
    from dfqbench.grid.load import grid_path, read_grid
    from dfqbench.plugins import load_plugins

    path = grid_path(name, load_plugins(plugin or ()))
    grid = read_grid(path)
    if as_json:
        typer.echo(json.dumps(grid.model_dump(mode="json", by_alias=True), indent=2))
    else:
        typer.echo(f"# {path}")
        typer.echo(path.read_text(encoding="utf-8").rstrip())
