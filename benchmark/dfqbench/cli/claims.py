"""`dfqbench claims`: published numbers with their sources."""

from __future__ import annotations

import re
import shutil
from typing import Annotated, cast

import typer

from dfqbench.api.errors import UsageError, unknown_name
from dfqbench.cli.options import PluginOption, checked_choice
from dfqbench.cli.table import claim_book


def claims(
    model: Annotated[str | None, typer.Option(metavar="NAME", help="A network, for example resnet18.")] = None,
    bits: Annotated[str | None, typer.Option(metavar="BITS", help="For example w4a4.")] = None,
    dataset: Annotated[
        str | None, typer.Option("--on", metavar="DATASET", help="imagenet, cifar10 or cifar100.")
    ] = None,
    method: Annotated[str | None, typer.Option(metavar="NAME", help="For example zeroq or SynQ.")] = None,
    times: Annotated[bool, typer.Option("--times", help="Show published times instead of accuracies.")] = False,
    fmt: Annotated[str, typer.Option("--format", metavar="text|md|csv|json", help="What to print.")] = "text",
    plugin: PluginOption = None,
) -> None:
    """Show published numbers, their sources and stated protocols.

    With the methods that are implemented here, and cells about which papers disagree. Numbers of plugins are included.
    """
    from dfqbench.report.literature.names import dataset_key, model_key
    from dfqbench.report.literature.published import names, published_times, select
    from dfqbench.report.renderers.literature import (
        LITERATURE_FORMATS,
        LiteratureFormat,
        render_numbers,
        render_times,
    )
    from dfqbench.report.renderers.plain_text import WIDTH

    checked_choice("format", fmt, LITERATURE_FORMATS)
    if bits is not None and not re.fullmatch(r"w[0-9]+a([0-9]+|\?)", bits.lower()):
        raise UsageError(f"'{bits}' is no bit-width", "write for example --bits w4a4")
    known = claim_book(plugin).numbers
    models, datasets = {claim.model for claim in known}, {claim.dataset for claim in known}
    if model is not None and model_key(model) not in map(model_key, models):
        raise unknown_name("model", model, models)
    if dataset is not None and dataset_key(dataset) not in map(dataset_key, datasets):
        raise unknown_name("dataset", dataset, datasets)
    methods = set[str]().union(*map(names, known), *map(names, published_times()))
    if method is not None and method.lower() not in methods:
        raise unknown_name("method", method.lower(), methods)
    widths = {claim.bits for claim in known} | {
        f"w{time.bits}a{time.bits}" for time in published_times() if time.bits.isdecimal()
    }
    if bits is not None and bits.lower() not in widths:
        raise unknown_name("bit-width", bits, widths)
    form = cast("LiteratureFormat", fmt)
    selection = {"method": method, "model": model, "dataset": dataset, "bits": bits}
    if times:
        typer.echo(render_times(select(published_times(), **selection), form), nl=False)
    else:
        width = shutil.get_terminal_size((WIDTH, 0)).columns
        typer.echo(render_numbers(select(known, **selection), form, width), nl=False)
