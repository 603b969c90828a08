"""`dfqbench diagnose`: measure properties of the images of a run that papers claim for theirs."""

from __future__ import annotations

from typing import Annotated

import typer

from dfqbench.cli import completion
from dfqbench.cli.completion import completing
from dfqbench.cli.layout import stderr_console
from dfqbench.cli.options import DeviceOption, OutOption, PluginOption, checked_device
from dfqbench.cli.runs import select
from dfqbench.run.store.run_folder import DEFAULT_OUT

SHOWN = ("bns", "silhouette", "margin", "homogeneity", "attention_spread", "attention_consistency")
LABELS = ("label_accuracy", "confidence", "per_image")


def diagnose(
    run: Annotated[
        str,
        typer.Argument(metavar="RUN", help="A run's name, or its folder.", autocompletion=completing(completion.runs)),
    ],
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

    Distance to BatchNorm statistics, separability of classes, attention, homogeneity and labels, from the images that
    each cell has kept; into the records, where `table --value` and `report` find them.
    """
    from dfqbench.diagnose.run import diagnose_run
    from dfqbench.plugins import load_plugins
    from dfqbench.report import describe_hardware, parse_layout, render

    folder = select(out, run).only()
    families = load_plugins(plugin or ()).model_families
    console = stderr_console()
    with console.status("diagnosing") as status:
        result = diagnose_run(folder, checked_device(device), families, trust=trust, again=again, say=status.update)
    environments = describe_hardware(folder.path)
    for values in (SHOWN, LABELS):
        layout = parse_layout(("scheme", "method"), ("model",), values)
        typer.echo(render(result.records, "text", environments, layout=layout))
    typer.echo(f"{result.done} cells diagnosed, {result.before} before", err=True)
    for problem in result.problems:
        typer.echo(f"not diagnosed: {problem}", err=True)
    if result.problems:
        raise typer.Exit(1)
