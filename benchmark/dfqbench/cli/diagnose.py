"""`dfqbench diagnose`: what papers claim about their images, measured for every method of a run."""

from __future__ import annotations

from typing import Annotated

import typer

from dfqbench.cli.options import DeviceOption, PluginOption
from dfqbench.cli.table import OutOption
from dfqbench.run.store.run_folder import DEFAULT_OUT

SHOWN = ("bns", "silhouette", "margin", "homogeneity", "attention_spread", "attention_consistency")
LABELS = ("label_accuracy", "confidence", "per_image", "speed")


def register(app: typer.Typer) -> None:
    """Adds the verb to the command line."""
    app.command("diagnose")(diagnose)


def diagnose(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run's name.")],
    out: OutOption = DEFAULT_OUT,
    plugin: PluginOption = None,
    device: DeviceOption = "auto",
    again: Annotated[bool, typer.Option("--again", help="Measure cells that have been diagnosed before too.")] = False,
    trust: Annotated[
        bool,
        typer.Option("--trust", help="Run model code that the run's folder names (`py:` references): only your own."),
    ] = False,
) -> None:
    """Measure the images of a run.

    Distance to BatchNorm statistics, separability of classes, attention, homogeneity, labels and speed, from the images
    that each cell has kept; into the records, where `table --value` and `report` find them.
    """
    from rich.console import Console

    from dfqbench.api.errors import unknown_name
    from dfqbench.cli.options import checked_device
    from dfqbench.diagnose.run import diagnose_run
    from dfqbench.plugins import load_plugins
    from dfqbench.report import describe_hardware, parse_layout, render
    from dfqbench.run.store.run_folder import run_folders

    folders = {folder.name: folder for folder in run_folders(out)}
    if run not in folders:
        raise unknown_name("run", run, folders)
    families = {name: offer.load for name, offer in load_plugins(plugin or ()).models.items()}
    console = Console(stderr=True)
    with console.status("diagnosing") as status:
        found = diagnose_run(
            folders[run], checked_device(device), families, trust=trust, again=again, say=status.update
        )
    words = describe_hardware(folders[run].path)
    for values in (SHOWN, LABELS):
        layout = parse_layout(("scheme", "method"), ("model",), values)
        typer.echo(render(found.records, "text", words, layout=layout))
    typer.echo(f"{found.done} cells diagnosed, {found.before} before", err=True)
    for problem in found.problems:
        typer.echo(f"not diagnosed: {problem}", err=True)
    if found.problems:
        raise typer.Exit(1)
