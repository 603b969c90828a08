"""`dfqbench decode`: decode the images of an evaluation set once, for all later evaluations."""

from __future__ import annotations

from typing import Annotated

import typer

from dfqbench.api.errors import UsageError
from dfqbench.cli import completion
from dfqbench.cli.completion import completing
from dfqbench.cli.layout import stderr_console
from dfqbench.cli.options import DataOption, ModelsOption, split_names


def decode(
    target: Annotated[
        str,
        typer.Argument(metavar="TARGET", help="For example imagenet.", autocompletion=completing(completion.targets)),
    ],
    models: ModelsOption = None,
    data: DataOption = None,
    yes: Annotated[bool, typer.Option("--yes", help="Write the file; without it only its size is printed.")] = False,
    remove: Annotated[bool, typer.Option("--remove", help="Remove the decoded file.")] = False,
) -> None:
    """Keep a target's evaluation images decoded.

    There is one file for each input size of the target's models, in the user's cache folder or in DFQBENCH_DECODED.
    Accuracies do not change.
    """
    from dfqbench.models.spec import ModelSpec
    from dfqbench.targets.catalogue import Catalogue
    from dfqbench.targets.decoded_cache import decoded_cache
    from dfqbench.targets.folders import data_folders

    if yes and remove:
        raise UsageError("--yes writes the file and --remove removes it", "leave one of them out")
    catalogue = Catalogue.discover(data_folders(data or []), [], families={})
    dataset = catalogue.target(target).dataset
    if dataset is None:
        raise UsageError(f"target '{target}' cannot be used: {catalogue.target(target).missing}")
    cards = {spec.card for spec in catalogue.models(target, split_names(models or "")) if isinstance(spec, ModelSpec)}
    files = {file.path: file for file in (decoded_cache(dataset, card) for card in cards)}
    for path, file in files.items():
        count, height, width, _ = file.shape
        exists = path.is_file()
        size = f"{count:,} images of {width}x{height}, {file.bytes / 2**20:,.0f} MiB, at {path}"
        if remove:
            path.unlink(missing_ok=True)
            typer.echo(f"{'removed' if exists else 'not there'}: {size}")
        elif exists and file.open() is not None:
            typer.echo(f"already there: {size}")
        elif yes:
            typer.echo(f"decoding {size}", err=True)
            with stderr_console().status("decoding"):
                file.write()
            typer.echo(f"written: {size}")
        else:
            typer.echo(f"would be written with --yes: {size}")
    if not files:
        typer.echo(f"{target} has no model whose input size could be taken; name one with --models", err=True)
        raise typer.Exit(1)
