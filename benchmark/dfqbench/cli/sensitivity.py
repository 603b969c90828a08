"""`dfqbench sensitivity`: measure how much rounding each layer of a network costs, on a method's images."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from dfqbench.api.errors import UsageError
from dfqbench.cli import completion
from dfqbench.cli.completion import completing, fixed
from dfqbench.cli.layout import fitted_table, stderr_console
from dfqbench.cli.models import default_target
from dfqbench.cli.options import (
    DataOption,
    DeviceOption,
    JsonOption,
    PluginOption,
    checked_choice,
    checked_device,
    checked_out,
    opened,
    split_names,
    usable_path,
)
from dfqbench.quant.scheme import PROTOCOLS

if TYPE_CHECKING:
    from dfqbench.quantizers.mixed_precision import LayerSensitivity


def sensitivity(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A network, for example digits:resnet8 (`models list`).",
            autocompletion=completing(completion.models),
        ),
    ],
    source: Annotated[
        str,
        typer.Option(
            metavar="METHOD", help="Method that makes the images.", autocompletion=completing(completion.methods)
        ),
    ] = "zeroq",
    on: Annotated[
        str | None,
        typer.Option(metavar="TARGET", help="The target it is for.", autocompletion=completing(completion.targets)),
    ] = None,
    bits: Annotated[str, typer.Option(metavar="WIDTHS", help="Widths of the weights, 2 to 8.")] = "2,4,8",
    protocol: Annotated[str, typer.Option(metavar="NAME", help="How weights are rounded.")] = "gdfq",
    sort: Annotated[bool, typer.Option("--sort", help="Most sensitive layer first, instead of network order.")] = False,
    to: Annotated[
        Path | None,
        typer.Option(parser=usable_path, metavar="FILE", help="Plot, .png or .svg; by default in the results folder."),
    ] = None,
    budget: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Length of the method's schedule, as for `run`.",
            autocompletion=completing(fixed("paper", "medium", "short", "tiny", "smoke")),
        ),
    ] = "auto",
    as_json: JsonOption = False,
    data: DataOption = None,
    plugin: PluginOption = None,
    device: DeviceOption = "auto",
    out: Annotated[
        Path, typer.Option("--out", parser=usable_path, metavar="DIR", help="Folder for the images and the plot.")
    ] = Path("results"),
) -> None:
    """Measure which layers cost accuracy.

    The weights of one layer at a time are rounded, everything else stays in float, and the network's answers to the
    images of a method are compared with its own: their KL divergence, 0 for equal answers. Images that were made
    before are used again. `run --mixed` gives layers their widths by the same measure.
    """
    from dfqbench.diagnose.sensitivity import RUN, measure_on_images, plan_images
    from dfqbench.report.plots.sensitivity import draw_sensitivity

    checked_choice("protocol", protocol, PROTOCOLS)
    widths, form, place, where = _widths(bits), _form(to), checked_out(out), checked_device(device)
    catalogue, plugins = opened(data, plugin)
    target = default_target(catalogue, model) if on is None else on
    plan = plan_images(
        model,
        source,
        target,
        scheme=f"w8a8@{protocol}",
        budget=budget,
        catalogue=catalogue,
        plugins=plugins,
        device=where,
    )
    layers = measure_on_images(plan, plugins, widths, out=place, device=where, console=stderr_console())
    if sort:
        layers.sort(key=lambda layer: -layer.omega[widths[0]])
    title = f"{target}, {plan.cells[0].model_name}, images of {source}, @{protocol}"
    if as_json:
        typer.echo(json.dumps([dataclasses.asdict(layer) for layer in layers], indent=2))
    else:
        typer.echo(f"{title}: KL divergence of the answers when one layer's weights are rounded\n")
        typer.echo(_table(layers, widths))
    file = to or place / RUN / f"{re.sub('[^a-z0-9]+', '-', title.lower())}.png"
    try:
        file.write_bytes(draw_sensitivity(layers, widths, title).encode(form))
    except OSError as error:
        raise UsageError(f"{file} cannot be written: {error.strerror}", "name another file with --to") from error
    typer.echo(f"plot: {file}", err=True)


def _table(layers: list[LayerSensitivity], widths: list[int]) -> str:
    total = sum(layer.macs for layer in layers) or 1
    rows = [
        (
            layer.name,
            f"{layer.weights:,}",
            f"{100 * layer.macs / total:.1f} %",
            *(f"{layer.omega[width]:.2g}" for width in widths),
        )
        for layer in layers
    ]
    return fitted_table(rows, ("layer", "weights", "MACs", *(f"{width} bits" for width in widths)))


def _widths(text: str) -> list[int]:
    for part in split_names(text) or [text]:
        if not re.fullmatch("[2-8]", part):
            raise UsageError(f"--bits: '{part}' is not a width of weights", "write for example --bits 2,4,8")
    return sorted({int(part) for part in split_names(text)})


def _form(to: Path | None) -> Literal["png", "svg"]:
    """Return the form of the plot's file, after checking that its folder is there."""
    if to is not None and (to.is_dir() or not to.absolute().parent.is_dir()):
        raise UsageError(f"--to {to} cannot be written: it is a folder, or its folder is missing", "name another file")
    if to is None or to.suffix == ".png":
        return "png"
    if to.suffix == ".svg":
        return "svg"
    raise UsageError(f"--to {to}: a plot is .png or .svg", "write for example --to layers.png")
