"""`dfqbench fetch`: download evaluation sets and weights; no other command downloads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from dfqbench.targets.download import Progress


def fetch(
    what: Annotated[
        list[str],
        typer.Argument(metavar="WHAT", help="cifar10, cifar100, torchvision:NAME, timm:NAME or pytorchcv:NAME."),
    ],
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="DIR", help="Where to put it (default: DFQBENCH_DATA, or the user's data)."),
    ] = None,
    mirror: Annotated[
        str | None, typer.Option("--mirror", metavar="URL", help="Scheme and host to download from instead.")
    ] = None,
) -> None:
    """Download evaluation sets and weights.

    They are put into a data folder and checked by hash. No other command downloads anything.

    timm's weights come from the Hugging Face Hub, with the token, mirror and cache that HF_TOKEN, HF_ENDPOINT and
    HF_HOME name.
    """
    from dfqbench.targets import fetch as downloads
    from dfqbench.targets.folders import fetch_folder

    folder = fetch_folder(data)
    with _bar() as progress:
        for name in what:
            done = downloads.fetch(name, folder, mirror, progress)
            state = "fetched" if done.fresh else "already there"
            digest = f" (sha256 {done.sha256})" if done.sha256 else ""
            typer.echo(f"{name}: {state}: {done.path}{digest}")


@contextmanager
def _bar() -> Iterator[Progress]:
    """Yield a function that reports progress on standard error, one line a file."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        tasks: dict[str, object] = {}

        def report(name: str, received: int, total: int | None) -> None:
            if name not in tasks:
                tasks[name] = bar.add_task(name, total=total)
            bar.update(tasks[name], completed=received)  # type: ignore[arg-type]

        yield report
