"""Shell completion of names: an error completes nothing, and nothing is printed."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dfqbench.api.errors import InputError
from dfqbench.run.store.run_folder import DEFAULT_OUT, RunFolder, run_folders

if TYPE_CHECKING:
    from dfqbench.targets.catalogue import Catalogue

Names = Callable[[Mapping[str, Any], str], Iterable[str]]
"""Returns names for the options given so far and the text before the cursor."""


def completing(names: Names, *, listed: bool = False) -> Callable[[Any, str], list[str]]:
    """Return typer's completion function of an option or argument; `listed`: of a list with commas."""

    def complete(ctx: Any, incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",") if listed else ("", "", incomplete)
        silence = io.StringIO()
        # A plugin's code runs here, and may do anything.
        with contextlib.suppress(Exception), contextlib.redirect_stdout(silence), contextlib.redirect_stderr(silence):
            found = [name for name in names(ctx.params, last) if name.startswith(last)]
            return [f"{before}{comma}{name}" for name in dict.fromkeys(found)]
        return []

    return complete


def fixed(*names: str) -> Names:
    """Return these names whatever the command."""
    return lambda _params, _text: names


def methods(_params: Mapping[str, Any], text: str) -> Iterable[str]:
    """Return installed methods; after `method+` with the quantizers."""
    from dfqbench.plugins import load_plugins
    from dfqbench.plugins.registry import REAL

    plugins = load_plugins()
    method, plus, _ = text.partition("+")
    return [f"{method}+{name}" for name in plugins.quantizers] if plus else [*plugins.methods, REAL]


def controls(_params: Mapping[str, Any], _text: str) -> Iterable[str]:
    """Return the installed controls, and the names of groups of them."""
    from dfqbench.grid.choice import offered_controls
    from dfqbench.plugins import load_plugins

    return offered_controls(load_plugins())


def recipes(_params: Mapping[str, Any], text: str) -> Iterable[str]:
    """Return the recipes of `distill`; after `quantizer:` those of another one."""
    from dfqbench.grid.choice import DISTILL
    from dfqbench.plugins import load_plugins

    quantizer, colon, _ = text.rpartition(":")
    return [f"{quantizer}{colon}{name}" for name in load_plugins().quantizer_class(quantizer or DISTILL).recipes]


def methods_and_quantizers(params: Mapping[str, Any], text: str) -> Iterable[str]:
    """Return installed methods and quantizers."""
    from dfqbench.plugins import load_plugins

    return [*methods(params, text), *load_plugins().quantizers]


def grids(_params: Mapping[str, Any], _text: str) -> Iterable[str]:
    """Return the grids that have a name."""
    from dfqbench.plugins import load_plugins

    return load_plugins().grids


def targets(params: Mapping[str, Any], _text: str) -> Iterable[str]:
    """Return the targets of data folders and installed plugins."""
    return _catalogue(params).names()


def models(params: Mapping[str, Any], _text: str) -> Iterable[str]:
    """Return the networks of the command's targets, or of all, with and without what stands before the colon."""
    catalogue = _catalogue(params)
    on = (params.get("on") or params.get("target") or ",".join(catalogue.names())).split(",")
    names = [model.name for target in on for model in catalogue.models(target.strip())]
    return [*names, *(name.partition(":")[2] for name in names)]


def runs(params: Mapping[str, Any], _text: str) -> Iterable[str]:
    """Return the names of the runs in the results folder."""
    return [folder.name for folder in _folders(params)]


def cells(params: Mapping[str, Any], text: str) -> Iterable[str]:
    """Return the identities of the cells in the results folder, and, where nothing is typed, only its runs."""
    folders = _folders(params)
    ids = [cell.name for folder in folders for cell in (folder.path / "cells").iterdir()] if text else []
    return [*(folder.name for folder in folders), *ids]


def methods_and_cells(params: Mapping[str, Any], text: str) -> Iterable[str]:
    """Return methods, and once something is typed cells."""
    return [*methods(params, text), *(cells(params, text) if text and "+" not in text else ())]


def _folders(params: Mapping[str, Any]) -> list[RunFolder]:
    with contextlib.suppress(InputError):
        return run_folders(Path(params.get("out") or DEFAULT_OUT))
    return []


def _catalogue(params: Mapping[str, Any]) -> Catalogue:
    from dfqbench.plugins import load_plugins
    from dfqbench.targets.catalogue import Catalogue
    from dfqbench.targets.folders import data_folders

    plugins, folders = load_plugins(), data_folders([Path(folder) for folder in params.get("data") or ()])
    return Catalogue.discover(folders, plugins.targets.values(), plugins.model_families)
