"""`dfqbench doctor`: check environment, devices, data folders and plugins."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dfqbench.api.errors import DfqError
from dfqbench.cli.layout import fitted_table, stderr_console
from dfqbench.cli.options import DataOption, JsonOption, PluginOption

if TYPE_CHECKING:
    from dfqbench.plugins import Plugins
Row = tuple[str, str, str]
COLUMNS = ("what", "status", "detail")
PACKAGES = ("dfqbench", "torch", "torchvision", "timm", "numpy", "scikit-learn", "safetensors", "pydantic", "pandas")
OPTIONAL = ("pytorchcv",)
"""Packages whose versions are shown; the optional ones may be absent."""


def doctor(
    data: DataOption = None,
    images: Annotated[int, typer.Option(metavar="N", min=0, help="Images for each network; 0: none.")] = 200,
    plugin: PluginOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check environment, devices, data folders and plugins.

    The exit status is 1 if something is broken.
    """
    from dfqbench.plugins import load_plugins

    plugins = load_plugins(plugin or ())
    with stderr_console().status("checking"):
        rows = [*_environment(), *_devices(), *_protection(), *_plugins(plugins), *_data(data or [], plugins, images)]
    if as_json:
        typer.echo(json.dumps([dict(zip(COLUMNS, row, strict=True)) for row in rows], indent=2))
    else:
        typer.echo(fitted_table(rows, COLUMNS))
    broken = sum(status == "broken" for _, status, _ in rows)
    if broken:
        typer.echo(f"{broken} broken", err=True)
        raise typer.Exit(1)


def _environment() -> Iterator[Row]:
    import platform
    from importlib.metadata import PackageNotFoundError, version

    yield ("python", "ok", f"{platform.python_version()} on {platform.platform(terse=True)}")
    for name in (*PACKAGES, *OPTIONAL):
        try:
            yield (name, "ok", version(name))
        except PackageNotFoundError:
            if name in OPTIONAL:
                yield (name, "missing", f"optional; pip install 'dfqbench[{name}]'")
            else:
                yield (name, "broken", "not installed; pip install dfqbench")


def _protection() -> Iterator[Row]:
    from dfqbench.run.worker.landlock import landlock_version

    version = landlock_version()
    if version:
        yield ("landlock", "ok", f"version {version}; plugin code is confined")
    else:
        yield ("landlock", "missing", "not in this kernel; only Python's audit hook watches plugin code")


def _devices() -> Iterator[Row]:
    import os

    import torch

    from dfqbench.accel.backend import triton_version, why_no_triton

    native = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
    bf16 = "bfloat16 in hardware" if native else "bfloat16 emulated"
    threads = f"{os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads"
    yield ("cpu", "ok", f"{threads}, {torch.backends.cpu.get_cpu_capability()}, {bf16}")
    if not torch.cuda.is_available():
        yield ("cuda", "missing", "no device")
        return
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        bf16 = "bfloat16" if properties.major >= 8 else "no bfloat16"
        yield (f"cuda:{index}", "ok", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, {bf16}")
    version = triton_version()
    if version is None:
        yield ("triton", "missing", f"{why_no_triton()}; steps on GPUs are slower without")
    else:
        yield ("triton", "ok", version)


def _plugins(plugins: Plugins) -> Iterator[Row]:
    yield ("methods", "ok", ", ".join(plugins.methods) or "none")
    for broken in plugins.broken:
        yield (f"plugin {broken.name}", "broken", f"{broken.origin}: {broken.message}")


def _data(data: Sequence[Path], plugins: Plugins, images: int) -> Iterator[Row]:
    from dfqbench.targets.catalogue import Catalogue
    from dfqbench.targets.checks import check_targets
    from dfqbench.targets.folders import data_folders

    families = plugins.model_families
    usable: list[Path] = []
    for folder in data_folders(data):
        try:
            Catalogue.discover([folder], families=families)
        except DfqError as error:
            yield ("data folder", "broken", str(error))
        else:
            usable.append(folder)
            yield ("data folder", "ok", str(folder))
    catalogue = Catalogue.discover(usable, plugins.targets.values(), families)
    yield from map(dataclasses.astuple, check_targets(catalogue, images, families))
