"""`dfqbench claims`: what papers print, with sources, and where they disagree."""

from __future__ import annotations

import re
from typing import Annotated, cast

import typer

from dfqbench.cli.options import PluginOption
from dfqbench.cli.table import claim_book


def register(app: typer.Typer) -> None:
    """Adds the verb to the command line."""
    app.command("claims")(claims)


def claims(
    model: Annotated[
        str | None, typer.Option("--model", metavar="NAME", help="A network, for example resnet18.")
    ] = None,
    bits: Annotated[str | None, typer.Option("--bits", metavar="BITS", help="For example w4a4.")] = None,
    dataset: Annotated[
        str | None, typer.Option("--on", metavar="DATASET", help="imagenet, cifar10 or cifar100.")
    ] = None,
    method: Annotated[str | None, typer.Option("--method", metavar="NAME", help="For example zeroq or SynQ.")] = None,
    times: Annotated[bool, typer.Option("--times", help="Show published times instead of accuracies.")] = False,
    fmt: Annotated[str, typer.Option("--format", metavar="text|md|csv|json", help="What to print.")] = "text",
    plugin: PluginOption = None,
) -> None:
    """Show published numbers with their sources.

    Which methods are implemented here, and where papers disagree about one cell; numbers that plugins bring along are
    among them.
    """
    from dfqbench.api.errors import UsageError, unknown_name
    from dfqbench.report.literature.names import dataset_key, model_key
    from dfqbench.report.literature.published import published_times, select
    from dfqbench.report.renderers.literature import (
        LITERATURE_FORMATS,
        LiteratureFormat,
        render_numbers,
        render_times,
    )

    if fmt not in LITERATURE_FORMATS:
        raise unknown_name("format", fmt, LITERATURE_FORMATS)
    if bits is not None and not re.fullmatch(r"w\d+a(\d+|\?)", bits.lower()):
        raise UsageError(f"'{bits}' is no bit-width", "write for example --bits w4a4")
    known = claim_book(plugin).numbers
    names = {
        "model": (model, model_key, {claim.model for claim in known}),
        "dataset": (dataset, dataset_key, {claim.dataset for claim in known}),
    }
    for kind, (wanted, key, printed) in names.items():
        if wanted is not None and key(wanted) not in {key(name) for name in printed}:
            raise unknown_name(kind, wanted, printed)
    methods = {claim.method.lower() for claim in known} | {time.method.lower() for time in published_times()}
    methods |= {claim.implemented.partition("+")[0] for claim in known}
    if method is not None and method.lower() not in methods:
        raise unknown_name("method", method.lower(), methods - {""})
    form = cast("LiteratureFormat", fmt)
    if times:
        chosen = select(published_times(), method=method, model=model, dataset=dataset, bits=bits)
        typer.echo(render_times(chosen, form), nl=False)
        return
    found = select(known, method=method, model=model, dataset=dataset, bits=bits)
    typer.echo(render_numbers(found, form), nl=False)
