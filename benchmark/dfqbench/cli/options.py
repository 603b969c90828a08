"""Options that several verbs share, and the plan, plugins and targets that they select."""

from __future__ import annotations

import dataclasses
import errno
import functools
import inspect
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_type_hints

import typer

from dfqbench.api.errors import UsageError, unknown_name
from dfqbench.cli import completion
from dfqbench.cli.completion import completing, fixed
from dfqbench.cli.layout import stderr_console
from dfqbench.run.store.run_folder import DEFAULT_OUT

if TYPE_CHECKING:
    from dfqbench.plugins import Plugins
    from dfqbench.run.plan.plan import Plan
    from dfqbench.targets.catalogue import Catalogue

Choice = TypeVar("Choice", bound=str)


def usable_path(text: str) -> Path:
    """Return the path that an option names; refuse one that no file can have."""
    if not text:
        raise typer.BadParameter("it is empty; name a path, '.' for this folder")
    try:
        path = Path(text).expanduser()
        path.stat()
    except RuntimeError as error:
        raise typer.BadParameter(f"{text}: there is no such user; write the whole path") from error
    except OSError as error:
        if error.errno in {errno.ENAMETOOLONG, errno.ELOOP}:
            raise typer.BadParameter(f"{text} cannot be used: {error.strerror}; name another path") from error
    return path


RunArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="RUN",
        help="A run's name, its folder, or a folder of runs; all without it.",
        autocompletion=completing(completion.runs),
    ),
]
ModelsOption = Annotated[
    str | None,
    typer.Option(
        "--models",
        metavar="MODELS",
        help="Networks, for example torchvision:resnet18.",
        autocompletion=completing(completion.models, listed=True),
    ),
]
ExactOption = Annotated[
    bool, typer.Option("--exact", help="Train in float32, operations in the order of the formulas: slower, reference.")
]
DeviceOption = Annotated[str, typer.Option("--device", metavar="DEVICE", help="auto, cpu, cuda or cuda:N.")]
DataOption = Annotated[
    list[Path] | None,
    typer.Option("--data", parser=usable_path, metavar="DIR", help="Data folder, besides DFQBENCH_DATA (repeatable)."),
]
PluginOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--plugin", parser=usable_path, metavar="FILE", help="Python file of a plugin, to be run (repeatable)."
    ),
]
OutOption = Annotated[
    Path, typer.Option("--out", parser=usable_path, metavar="DIR", help="Folder that holds the runs.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@dataclass(frozen=True, slots=True)
class GridRequest:
    """Options that `run` and `plan` share: a grid, changes of it, and where to run it."""

    grid: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Preset (`grids list`) or path of a grid file.",
            autocompletion=completing(completion.grids),
        ),
    ] = "w4a4"
    on: Annotated[
        str | None,
        typer.Option(
            metavar="TARGETS",
            help="For example cifar10,digits.",
            autocompletion=completing(completion.targets, listed=True),
        ),
    ] = None
    models: ModelsOption = None
    methods: Annotated[
        str | None,
        typer.Option(
            metavar="METHODS",
            help="For example zeroq,real,zeroq+distill.",
            autocompletion=completing(completion.methods, listed=True),
        ),
    ] = None
    controls: Annotated[
        str | None,
        typer.Option(
            metavar="CONTROLS",
            help="Under every quantizer used: all (noise and real), none, or for example noise,fractal.",
            autocompletion=completing(completion.controls, listed=True),
        ),
    ] = None
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="RECIPE",
            help="One recipe for all methods, for example dffg.",
            autocompletion=completing(completion.recipes),
        ),
    ] = None
    bits: Annotated[str | None, typer.Option(metavar="SCHEMES", help="For example w4a4,w3a3@deploy.")] = None
    mixed: Annotated[
        str | None,
        typer.Option(metavar="BUDGET", help="Widths by layer: size=4bit, size=2.5MiB or bops=4bit."),
    ] = None
    seeds: Annotated[str | None, typer.Option(metavar="SEEDS", help="For example 0,1,2 or 0-4.")] = None
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME.PARAM=VALUE", help="For example zeroq.iterations=100 (repeatable)."),
    ] = None
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="paper, medium, short, tiny or smoke.",
            autocompletion=completing(fixed("paper", "medium", "short", "tiny", "smoke")),
        ),
    ] = None
    limit: Annotated[int | None, typer.Option(metavar="N", help="Evaluate N random images; marked in tables.")] = None
    data: DataOption = None
    plugin: PluginOption = None
    exact: ExactOption = False
    device: DeviceOption = "auto"
    out: OutOption = DEFAULT_OUT


def expand_dataclasses(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command one option for each field of its dataclass parameters; typer does not support these."""
    parameters: list[inspect.Parameter] = []
    groups: dict[str, Any] = {}
    for parameter in inspect.signature(command, eval_str=True).parameters.values():
        keyword = parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        if not dataclasses.is_dataclass(keyword.annotation):
            parameters.append(keyword)
            continue
        groups[keyword.name] = keyword.annotation
        hints = get_type_hints(keyword.annotation, include_extras=True)
        parameters += [
            keyword.replace(name=field.name, annotation=hints[field.name], default=field.default)
            for field in dataclasses.fields(keyword.annotation)
        ]

    @functools.wraps(command)
    def expanded(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{field.name: values.pop(field.name) for field in dataclasses.fields(group)})
        command(**values)

    expanded.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return expanded


def planned(
    request: GridRequest, device: str, *, list_missing: bool = False, precision: str | None = None
) -> tuple[Plan, Plugins]:
    """Load plugins and targets and expand the grid into cells.

    Args:
        request: the grid and its changes.
        device: torch device.
        list_missing: whether to print what its targets and methods lack.
        precision: what the precision `auto` means; None: what it means on this machine.
    """
    from dfqbench.grid import apply, load_grid, parse_selection
    from dfqbench.run.plan.plan import build_plan, missing

    catalogue, plugins = opened(request.data, request.plugin)
    for problem in catalogue.problems:
        typer.echo(problem, err=True)
    selection = parse_selection(
        on=request.on,
        models=request.models,
        methods=request.methods,
        controls=request.controls,
        recipe=request.recipe,
        bits=request.bits,
        mixed=request.mixed,
        seeds=request.seeds,
        budget=request.budget,
        limit=request.limit,
        settings=request.settings or (),
        exact=request.exact,
    )
    grid = apply(load_grid(request.grid, plugins), selection)
    if precision is not None and grid.precision == "auto":
        grid = grid.model_copy(update={"precision": precision})
    for line in missing(grid, catalogue, plugins) if list_missing else ():
        typer.echo(f"missing: {line}", err=True)
    with stderr_console().status("reading data and weights"):
        plan = build_plan(grid, catalogue, plugins, device)
    _check_use(plan, selection["settings"], catalogue)
    return plan, plugins


def opened(data: Sequence[Path] | None, plugin: Sequence[Path] | None) -> tuple[Catalogue, Plugins]:
    """Return the targets of the data folders and plugins, and the plugins."""
    from dfqbench.plugins import load_plugins
    from dfqbench.targets.catalogue import Catalogue
    from dfqbench.targets.folders import data_folders

    plugins = load_plugins(plugin or ())
    return Catalogue.discover(data_folders(data or []), plugins.targets.values(), plugins.model_families), plugins


def _check_use(plan: Plan, settings: Iterable[str], catalogue: Catalogue) -> None:
    """Refuse a plan without cells, and parameters that no cell uses."""
    from dfqbench.grid.schema import MIXED

    if not plan.cells:
        targets = plan.grid.on or catalogue.names()
        raise UsageError(
            f"no model is there for {', '.join(targets)}",
            "name one, for example --models 'cifar:resnet20?weights=PATH', or put it into the folder's targets.toml",
        )
    used = {name for cell in plan.cells for name in (cell.method.name, cell.quantizer.name)}
    used |= {MIXED for cell in plan.cells if cell.scheme.mixed is not None}
    for key in settings:
        name = key.partition(".")[0]
        if name not in used:
            raise UsageError(
                f"--set {key} would change nothing: no cell of this plan uses '{name}'",
                "leave it out, or add what it belongs to with --methods",
            )


def checked_choice(what: str, text: str, valid: Iterable[Choice]) -> Choice:
    """Return the text if it is one of the valid names."""
    for name in valid:
        if name == text:
            return name
    raise unknown_name(what, text, valid)


def split_names(text: str) -> list[str]:
    """Split a list of names at its commas."""
    return [part.strip() for part in text.split(",") if part.strip()]


def checked_device(text: str) -> str:
    """Return the torch device that `--device` means."""
    from dfqbench.run.store.environment import resolve_device

    if not re.fullmatch(r"auto|cpu|cuda(:[0-9]{1,3})?", text):
        raise UsageError(f"'{text}' is not a device", "write --device auto, cpu, cuda or cuda:0")
    return resolve_device(text)


def checked_out(path: Path) -> Path:
    """Return the results folder if it can be written to, now or once it is made."""
    place = path.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir():
        raise UsageError(f"--out {path}: {place} is not a folder", "name another folder")
    if not os.access(place, os.W_OK | os.X_OK):
        raise UsageError(f"--out {path}: {place} cannot be written to", "name another folder, or change its rights")
    return path
