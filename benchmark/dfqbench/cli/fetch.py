"""`dfqbench fetch`: download evaluation sets and weights; no other command downloads."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Annotated

import typer

from dfqbench.cli.layout import stderr_console
from dfqbench.cli.options import usable_path


def fetch(
    what: Annotated[
        list[str],
        typer.Argument(metavar="WHAT", help="cifar10, cifar100, torchvision:NAME, timm:NAME or pytorchcv:NAME."),
    ],
    data: Annotated[
        Path | None,
        typer.Option(
            parser=usable_path, metavar="DIR", help="Where to put it (default: DFQBENCH_DATA, or the user's data)."
        ),
    ] = None,
    mirror: Annotated[str | None, typer.Option(metavar="URL", help="Scheme and host to download from instead.")] = None,
) -> None:
    """Download evaluation sets and weights.

    They are put into a data folder and checked by hash. No other command downloads anything.

    timm's weights come from the Hugging Face Hub, with the token, mirror and cache that HF_TOKEN, HF_ENDPOINT and
    HF_HOME name.
    """
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    from dfqbench.targets import fetch as downloads
    from dfqbench.targets.folders import fetch_folder

    folder = fetch_folder(data)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    console = stderr_console()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task_of = functools.cache(bar.add_task)

        def report(name: str, received: int, total: int | None) -> None:
            bar.update(task_of(name), completed=received, total=total)

        for name in what:
            done = downloads.fetch(name, folder, mirror, report)
            state = "fetched" if done.fresh else "already there"
            digest = f" (sha256 {done.sha256})" if done.sha256 else ""
            typer.echo(f"{name}: {state}: {done.path}{digest}")
