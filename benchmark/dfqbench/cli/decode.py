"""`dfqbench decode`: decodes an evaluation set of image files once, so that later evaluations need not."""

from __future__ import annotations

from typing import Annotated

import typer

from dfqbench.cli.options import DataOption, ModelsOption


def decode(
    target: Annotated[str, typer.Argument(metavar="TARGET", help="For example imagenet.")],
    models: ModelsOption = None,
    data: DataOption = None,
    yes: Annotated[bool, typer.Option("--yes", help="Write the file; without it only its size is said.")] = False,
    remove: Annotated[bool, typer.Option("--remove", help="Remove the decoded file.")] = False,
) -> None:
    """Keep a target's evaluation images decoded.

    There is one file for each input size of the target's models. It lies in the user's cache folder, or where
    DFQBENCH_DECODED says. Accuracies do not change by it.
    """
    from dfqbench.models.spec import ModelSpec
    from dfqbench.targets.catalogue import Catalogue
    from dfqbench.targets.decoded_cache import decoded_cache
    from dfqbench.targets.folders import data_folders

    catalogue = Catalogue.discover(data_folders(data or []), [], families={})
    dataset = catalogue.target(target).dataset
    if dataset is None:
        from dfqbench.api.errors import UsageError

        raise UsageError(f"target '{target}' cannot be used: {catalogue.target(target).missing}")
    wanted = [name.strip() for name in (models or "").split(",") if name.strip()]
    cards = {spec.card for spec in catalogue.models(target, wanted) if isinstance(spec, ModelSpec)}
    files = {cache.path: cache for cache in (decoded_cache(dataset, card) for card in cards)}
    for path, found in files.items():
        count, height, width, _ = found.shape
        there = path.is_file()
        size = f"{count:,} images of {width}x{height}, {found.bytes / 2**20:,.0f} MiB, at {path}"
        if remove:
            path.unlink(missing_ok=True)
            typer.echo(f"{'removed' if there else 'not there'}: {size}")
        elif there and found.open() is not None:
            typer.echo(f"already there: {size}")
        elif yes:
            typer.echo(f"decoding {size}", err=True)
            found.write()
            typer.echo(f"written: {size}")
        else:
            typer.echo(f"would be written with --yes: {size}")
    if not files:
        typer.echo(f"{target} has no model whose input size could be taken; name one with --models", err=True)
        raise typer.Exit(1)


def register(app: typer.Typer) -> None:
    """Adds the verb."""
    app.command("decode")(decode)
